"""Mender, RAUC and hawkBit bring a release, each as it really calls; a running device judges it."""

import hashlib
import json
import os
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import pytest

from fieldlm.formats.bundle import Bundle
from tests.support.bad_releases import Workshop
from tests.support.device_process import DEVICE, FIELDLM, DeviceProcess

ADAPTORS = Path(__file__).resolve().parents[2] / "packaging" / "adaptors"


@dataclass
class Site:
    folder: Path
    shop: Workshop
    device: DeviceProcess
    environment: dict[str, str] = field(default_factory=dict[str, str])

    def release(self, name: str, *, scale: float) -> tuple[Bundle, Path]:
        """Publish an adapter and return it with the repository as a tar."""
        bundle = self.shop.bundle(name, adapter=self.shop.lora(name, scale=scale))
        self.shop.publish(bundle)
        path = self.folder / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            tar.add(self.shop.repository, arcname=".")
        return bundle, path

    def run(self, command: list[str], **environment: str) -> "subprocess.CompletedProcess[str]":
        every = {**self.environment, **environment}
        return subprocess.run(command, env=every, capture_output=True, text=True, check=False, cwd=self.folder)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("adaptors")
    shop = Workshop.open(folder / "shop")
    shop.publish(shop.base)
    arguments = [
        str(shop.base.folder), "--state", str(folder / "state"), "--profile", str(shop.profile), "--no-discovery",
        "--device", DEVICE, "--trust", str(shop.root), "--context", "256", "--parallel", "1",
    ]  # fmt: skip
    device = DeviceProcess(arguments, folder)
    try:
        device.wait_ready()
        environment = {
            **os.environ,
            "FIELDLM": FIELDLM,
            "FIELDLM_STATE": str(folder / "state"),
            "FIELDLM_URL": f"http://127.0.0.1:{device.port}",
            "FIELDLM_TAKE": str(ADAPTORS / "fieldlm-take"),
        }
        yield Site(folder, shop, device, environment)
    finally:
        device.stop()


def mender(site: Site, state: str, files: Path | None = None) -> "subprocess.CompletedProcess[str]":
    """Call the module as Mender does: a question alone, a state with the folder of the File API."""
    return site.run([str(ADAPTORS / "mender" / "fieldlm"), state, *([str(files)] if files else [])])


def file_api(folder: Path, payload: Path) -> Path:
    for name in ("files", "header", "tmp"):
        (folder / name).mkdir(parents=True)
    (folder / "version").write_text("3")
    (folder / "files" / "repository.tar").write_bytes(payload.read_bytes())
    return folder


def test_mender_installs_commits_and_rolls_back(site: Site, tmp_path: Path) -> None:
    assert mender(site, "NeedsArtifactReboot").stdout == "No\n"
    assert mender(site, "SupportsRollback").stdout == "Yes\n"
    for unknown in ("ProvidePayloadFileSizes", "SomethingOfTheFuture"):
        assert (mender(site, unknown).returncode, mender(site, unknown).stdout) == (0, "")
    first, payload = site.release("mender-1", scale=0.01)
    files = file_api(tmp_path / "first", payload)
    for state in ("Download", "ArtifactInstall", "ArtifactCommit", "Cleanup"):
        done = mender(site, state, files)
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert site.device.generation() == first.generation
    second, payload = site.release("mender-2", scale=0.02)
    files = file_api(tmp_path / "second", payload)
    assert mender(site, "ArtifactInstall", files).returncode == 0
    assert site.device.generation() == second.generation
    for state in ("ArtifactRollback", "ArtifactFailure", "Cleanup"):
        assert mender(site, state, files).returncode == 0
    assert site.device.generation() == first.generation
    assert mender(site, "ArtifactCommit", files).returncode != 0, "what was taken back does not count as deployed"


def test_rauc_installs_a_slot_and_refuses_a_foreign_bundle(site: Site, tmp_path: Path) -> None:
    hook = str(ADAPTORS / "rauc" / "fieldlm-hook")
    done = site.run([hook, "install-check"], RAUC_MF_COMPATIBLE="other-board", RAUC_SYSTEM_COMPATIBLE="my-board")
    assert (done.returncode, done.stderr) == (10, "the bundle is for other-board, this is my-board\n")
    assert site.run([hook, "install-check"], RAUC_MF_COMPATIBLE="b", RAUC_SYSTEM_COMPATIBLE="b").returncode == 0
    tuned, payload = site.release("rauc", scale=0.03)
    mount = tmp_path / "bundle"
    mount.mkdir()
    payload.rename(mount / "repository.tar")
    slot = {
        "RAUC_SLOT_NAME": "fieldlm.0", "RAUC_SLOT_CLASS": "fieldlm", "RAUC_IMAGE_NAME": "repository.tar",
        "RAUC_BUNDLE_MOUNT_POINT": str(mount), "RAUC_MOUNT_PREFIX": "/mnt/rauc",
    }  # fmt: skip
    assert site.run([hook, "slot-install"], **{**slot, "RAUC_SLOT_CLASS": "rootfs"}).returncode == 0
    assert site.device.generation() != tuned.generation
    done = site.run([hook, "slot-install"], **slot)
    assert done.returncode == 0, done.stderr
    assert site.device.generation() == tuned.generation
    assert site.run([hook, "slot-no-such-thing"]).returncode == 1


class Hawkbit(ThreadingHTTPServer):
    """A server of hawkBit's DDI, v1: the documents have the fields and names of its documentation."""

    def __init__(self, artifact: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Ddi)
        self.artifact = artifact
        self.is_cancelled = False
        self.heard: list[tuple[str, str, Any]] = []
        self.root = f"http://127.0.0.1:{self.server_address[1]}/DEFAULT/controller/v1/{DEVICE}"
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def told(self, path: str) -> Any:
        """Return the document at `path`, None where there is none."""
        if path == "":
            wanted = "cancelAction/11" if self.is_cancelled else "deploymentBase/11?c=-2129030598"
            links = {"configData": "configData", wanted.partition("/")[0]: wanted}
            links = {name: {"href": f"{self.root}/{link}"} for name, link in links.items()}
            return {"config": {"polling": {"sleep": "00:05:30"}}, "_links": links}
        if path == "cancelAction/11":
            return {"id": "11", "cancelAction": {"stopId": "11"}}
        if not path.startswith("deploymentBase/11"):
            return None
        data = self.artifact.read_bytes()
        hashes = {name: hashlib.new(name, data).hexdigest() for name in ("sha1", "md5", "sha256")}
        artifact = {
            "filename": "repository.tar", "hashes": hashes, "size": len(data),
            "_links": {"download-http": {"href": f"{self.root}/softwaremodules/7/artifacts/repository.tar"}},
        }  # fmt: skip
        chunk = {"part": "bApp", "version": "1.2", "name": "kiosk model", "artifacts": [artifact]}
        return {"id": "11", "deployment": {"download": "forced", "update": "forced", "chunks": [chunk]}}

    def executions(self) -> list[tuple[str, str]]:
        found = [document["status"] for _, path, document in self.heard if path.endswith("/feedback")]
        return [(status["execution"], status["result"]["finished"]) for status in found]


class _Ddi(BaseHTTPRequestHandler):
    @property
    def hawkbit(self) -> Hawkbit:
        return cast(Hawkbit, self.server)

    def do_GET(self) -> None:
        if self.headers["Authorization"] != "TargetToken s3cret":
            self.send_error(401)
            return
        path = self._path()
        if path.startswith("softwaremodules/"):
            self._answer(self.hawkbit.artifact.read_bytes())
        elif (told := self.hawkbit.told(path)) is not None:
            self._answer(json.dumps(told).encode())
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.hawkbit.heard.append((self.command, self._path(), document))
        self._answer(b"")

    do_PUT = do_POST

    def _path(self) -> str:
        return self.path.removeprefix(f"/DEFAULT/controller/v1/{DEVICE}").lstrip("/")

    def _answer(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None: ...


def poll(site: Site, server: Hawkbit, token: str = "s3cret") -> "subprocess.CompletedProcess[str]":
    (site.folder / "token").write_text(f"{token}\n")
    return site.run(
        [
            sys.executable, str(ADAPTORS / "hawkbit" / "fieldlm_hawkbit.py"), "--once", "--controller", DEVICE,
            "--server", f"http://127.0.0.1:{server.server_address[1]}", "--token-file", str(site.folder / "token"),
            "--take", site.environment["FIELDLM_TAKE"],
        ]
    )  # fmt: skip


def test_hawkbit_deploys_and_hears_why_a_bad_release_was_not_taken(site: Site) -> None:
    tuned, payload = site.release("hawkbit", scale=0.04)
    server = Hawkbit(payload)
    try:
        done = poll(site, server)
        assert done.returncode == 0, done.stderr
        assert server.executions() == [("proceeding", "none"), ("downloaded", "none"), ("closed", "success")]
        assert site.device.generation() == tuned.generation
        (attributes,) = [document for _, path, document in server.heard if path == "configData"]
        assert attributes["mode"] == "merge"
        assert len(attributes["data"]["generation"]) == 64
        _, server.artifact = site.release("hawkbit-bad", scale=5.0)
        server.heard.clear()
        assert poll(site, server).returncode == 0
        assert server.executions()[-1] == ("closed", "failure")
        last = server.heard[-1][2]
        assert "(garbage)" in last["status"]["details"][0]
        assert isinstance(last["timestamp"], int)
        assert site.device.generation() == tuned.generation
        server.is_cancelled = True
        server.heard.clear()
        assert poll(site, server).returncode == 0
        assert server.heard[-1][1] == "cancelAction/11/feedback"
        assert server.executions() == [("closed", "success")]
        assert poll(site, server, token="wrong").returncode == 1
    finally:
        server.shutdown()
        server.server_close()
