#!/usr/bin/env python3
"""Poll a hawkBit server (Direct Device Integration API v1) and hand what it deploys to fieldlm.

    fieldlm_hawkbit.py --server https://hawkbit.example --tenant DEFAULT --controller kiosk-7 --token-file /etc/token

A software module's artifact is a fieldlm repository as a tar. hawkBit hears `proceeding`, `downloaded` and, in the end,
`closed` with success or failure and fieldlm's own reason. One file, Python's standard library alone.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any

CHUNK_BYTES = 1 << 20
TIMEOUT_S = 60.0
DEFAULT_SLEEP_S = 300.0


class Server:
    """One controller's side of the API."""

    def __init__(self, url: str, tenant: str, controller: str, token: str) -> None:
        self.base = f"{url.rstrip('/')}/{tenant}/controller/v1/{controller}"
        self._headers = {"Authorization": f"TargetToken {token}", "Accept": "application/hal+json, application/json"}

    def get(self, url: str) -> Any:
        with self._open(urllib.request.Request(url, headers=self._headers)) as response:
            return json.load(response)

    def send(self, url: str, document: Any, *, method: str = "POST") -> None:
        data = json.dumps(document).encode()
        headers = {**self._headers, "Content-Type": "application/json"}
        self._open(urllib.request.Request(url, data, headers, method=method)).close()

    def download(self, url: str, target: Path, *, sha256: str) -> None:
        """Fetch one artifact; raises ValueError when its bytes are not those that were announced."""
        digest = hashlib.sha256()
        with self._open(urllib.request.Request(url, headers=self._headers)) as response, target.open("wb") as file:
            while part := response.read(CHUNK_BYTES):
                digest.update(part)
                file.write(part)
        if digest.hexdigest() != sha256:
            raise ValueError(f"{url} is not what was announced: its SHA-256 differs")

    def feedback(self, action: str, execution: str, finished: str, details: list[str], *, what: str) -> None:
        status = {"execution": execution, "result": {"finished": finished}, "details": details}
        document = {"status": status, "timestamp": time.time_ns() // 1_000_000}
        self.send(f"{self.base}/{what}/{action}/feedback", document)

    def _open(self, request: urllib.request.Request) -> Any:
        return urllib.request.urlopen(request, timeout=TIMEOUT_S)


def poll(server: Server, take: list[str]) -> float:
    """Do what the server wants once; return the seconds until it wants to be asked again."""
    told = server.get(server.base)
    links = told.get("_links", {})
    if "configData" in links:
        attributes = {"generation": subprocess.check_output([*take, "current"], text=True).strip()}
        server.send(links["configData"]["href"], {"mode": "merge", "data": attributes}, method="PUT")
    if "cancelAction" in links:
        # Nothing runs between two polls, so whatever is cancelled has not begun, or is over.
        cancelled = server.get(links["cancelAction"]["href"])["cancelAction"]["stopId"]
        server.feedback(cancelled, "closed", "success", ["nothing of it was begun"], what="cancelAction")
    elif "deploymentBase" in links:
        deploy(server, server.get(links["deploymentBase"]["href"]), take)
    return sleep_s(told)


def deploy(server: Server, action: Any, take: list[str]) -> None:
    """Install every artifact of one deployment and say how it came out; `skip` waits for a later poll."""
    number, deployment = str(action["id"]), action["deployment"]
    if "skip" in (deployment["download"], deployment["update"]):
        return
    artifacts = [artifact for chunk in deployment["chunks"] for artifact in chunk["artifacts"]]
    server.feedback(number, "proceeding", "none", ["begun"], what="deploymentBase")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for artifact in artifacts:
                path = Path(folder) / "repository.tar"
                link = artifact["_links"].get("download") or artifact["_links"]["download-http"]
                server.download(link["href"], path, sha256=artifact["hashes"]["sha256"])
                server.feedback(number, "downloaded", "none", [artifact["filename"]], what="deploymentBase")
                done = subprocess.run([*take, "install", str(path)], capture_output=True, text=True, check=False)
                if done.returncode:
                    raise ValueError(reason(done))
    except (ValueError, OSError) as error:
        server.feedback(number, "closed", "failure", [str(error)], what="deploymentBase")
        return
    server.feedback(number, "closed", "success", ["updated"], what="deploymentBase")


def reason(done: "subprocess.CompletedProcess[str]") -> str:
    """Return why fieldlm did not take a release: its word for programs and its line for people."""
    try:
        result = json.loads(done.stdout)
        return f"{result['outcome']} ({result['reason']}): {result['detail']}"
    except (ValueError, KeyError, TypeError):
        lines = done.stderr.strip().splitlines()
        return lines[-1] if lines else f"exit code {done.returncode}"


def sleep_s(told: Any) -> float:
    """Read `config.polling.sleep`, which is HH:MM:SS."""
    try:
        hours, minutes, seconds = (int(part) for part in told["config"]["polling"]["sleep"].split(":"))
    except (KeyError, TypeError, ValueError):
        return DEFAULT_SLEEP_S
    return max(1.0, 3600.0 * hours + 60.0 * minutes + seconds)


def main() -> int:
    parser = argparse.ArgumentParser(description="Poll a hawkBit server and hand what it deploys to fieldlm.")
    parser.add_argument("--server", required=True, help="https://HOST")
    parser.add_argument("--tenant", default="DEFAULT")
    parser.add_argument("--controller", required=True, help="this device's controllerId")
    parser.add_argument("--token-file", type=Path, required=True, help="file with the target's security token")
    parser.add_argument("--take", default="fieldlm-take", help="path of fieldlm-take")
    parser.add_argument("--once", action="store_true", help="poll once, for a timer")
    args = parser.parse_args()
    server = Server(args.server, args.tenant, args.controller, args.token_file.read_text().strip())
    while True:
        try:
            wait_s = poll(server, [args.take])
        except (OSError, ValueError, KeyError) as error:
            print(f"hawkBit at {args.server}: {type(error).__name__}: {error}", file=sys.stderr, flush=True)
            if args.once:
                return 1
            wait_s = DEFAULT_SLEEP_S
        if args.once:
            return 0
        time.sleep(wait_s)


if __name__ == "__main__":
    sys.exit(main())
