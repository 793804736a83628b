"""How soon does a voice begin, and how soon is it silent when somebody speaks?

    .venv/bin/python -m benchmarks.voice [MODEL] [--times 20] [--json]

docs/examples/voice in a process of its own, asked over its unix socket. First sentence: from the transcript to the
first `handled-chunk`. Silent: from the wake word to the `not-handled` that ends the answer; what was sent before it has
come by then. Free: how much later the first sentence comes to a question that is asked into a running answer, with one
sequence for both.
"""

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from wyoming.asr import Transcript
from wyoming.client import AsyncClient
from wyoming.wake import Detection

SERVICE = Path(__file__).parents[1] / "docs/examples/voice/wyoming_handle.py"
STORY = "Tell me a long story about a robot and a lighthouse."
QUESTION = "What is a lighthouse?"


async def _until(client: AsyncClient, kind: str) -> float:
    """Return seconds of the monotonic clock when an event of this kind came."""
    while event := await client.read_event():
        if event.type == kind:
            return time.monotonic()
        if event.type == "handled-stop" and kind == "handled-chunk":
            raise SystemExit("the model said nothing; try another one")
    raise SystemExit("the service went away")


async def _first_sentence(client: AsyncClient, text: str, *, to_the_end: bool = True) -> float:
    began_s = time.monotonic()
    await client.write_event(Transcript(text).event())
    came_s = await _until(client, "handled-chunk") - began_s
    if to_the_end:
        await _until(client, "handled-stop")
    return came_s


async def _measure(uri: str, times: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"first sentence": [], "silent": [], "free": []}
    for n in range(times + 1):
        # A connection each: nothing is remembered. The first has other tokens lie in the cache, as the story has.
        async with AsyncClient.from_uri(uri) as client:
            await _first_sentence(client, "Say hello.")
        async with AsyncClient.from_uri(uri) as client:
            calm_s = await _first_sentence(client, QUESTION)
        async with AsyncClient.from_uri(uri) as client:
            await _first_sentence(client, STORY, to_the_end=False)
            began_s = time.monotonic()
            await client.write_event(Detection().event())
            silent_s = await _until(client, "not-handled") - began_s
        async with AsyncClient.from_uri(uri) as client, AsyncClient.from_uri(uri) as other:
            story = Transcript(STORY, context={"satellite_id": "kitchen"}).event()
            await client.write_event(story)
            await _until(client, "handled-chunk")
            began_s = time.monotonic()
            await other.write_event(Transcript(QUESTION, context={"satellite_id": "kitchen"}).event())
            asked_s = await _until(other, "handled-chunk") - began_s
        if n:  # the first round warms up
            for name, seconds in zip(found, (calm_s, silent_s, asked_s - calm_s), strict=True):
                found[name].append(seconds)
    return found


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="smollm2")
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        uri = f"unix://{folder}/voice.sock"
        command = [sys.executable, SERVICE, args.model, "--uri", uri, "--parallel", "1"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as service:
            try:
                while service.poll() is None and not Path(folder, "voice.sock").exists():
                    time.sleep(0.1)
                found = asyncio.run(_measure(uri, args.times))
            finally:
                service.terminate()
    rows = {name: _row(seconds) for name, seconds in found.items()}
    if args.json:
        print(json.dumps(rows))
    else:
        print(f"{'milliseconds':<16}{'median':>8}{'p95':>8}{'most':>8}")
        for name, row in rows.items():
            print(f"{name:<16}" + "".join(f"{value:>8.1f}" for value in row.values()))
    return 0


def _row(seconds: list[float]) -> dict[str, float]:
    ordered = sorted(1000 * second for second in seconds)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    return {
        "median_ms": round(statistics.median(ordered), 2),
        "p95_ms": round(p95, 2),
        "most_ms": round(ordered[-1], 2),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
