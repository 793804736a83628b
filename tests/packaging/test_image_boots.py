"""An image in QEMU, by its own boot loader: it becomes ready, answers, takes an update, and survives power cuts.

Only `make deep` has the time: without KVM a boot takes minutes, and QEMU is large. A board is tried where QEMU, its
firmware and a compiler for it are.
"""

import http.server
import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm_compiler.repository.publish import publish
from tests.support import material
from tests.support.debian_root import ROOT
from tests.support.virtual_machine import HOST, VirtualMachine, boards_that_boot

KEY = "0123456789abcdef0123"
PROFILES = {"generic-amd64": "generic-x86-64", "generic-arm64": "generic-aarch64", "pi4": "generic-aarch64"}
"""Board → the profile of a bundle that every machine like it can serve."""
CONSOLES = {"generic-amd64": "ttyS0", "generic-arm64": "ttyAMA0", "pi4": "ttyAMA0,115200"}
CUT_AFTER = (0.3, 0.6, 1.0)
"""The power goes when that share of an update's bytes has been sent."""
FETCH_KB_S = 40


CASES = [
    (board, is_read_only)
    for board, is_read_only in (
        ("generic-amd64", False),
        ("generic-amd64", True),
        ("generic-arm64", True),
        ("pi4", False),
    )
    if board in boards_that_boot()
]


class Repository(http.server.ThreadingHTTPServer):
    """A web server of static files that counts the bytes of blobs that it has sent."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), partial(_Files, self, directory=str(folder)))
        self.sent_bytes = 0


class _Files(http.server.SimpleHTTPRequestHandler):
    def __init__(self, repository: Repository, *args: Any, **options: Any) -> None:
        self._repository = repository
        super().__init__(*args, **options)

    def copyfile(self, source: Any, outputfile: Any) -> None:
        while data := source.read(4096):
            outputfile.write(data)
            if "blobs" in self.path:
                self._repository.sent_bytes += len(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(folder: Path) -> Generator[Repository]:
    with Repository(folder) as repository:
        thread = threading.Thread(target=repository.serve_forever)
        thread.start()
        try:
            yield repository
        finally:
            repository.shutdown()
            thread.join()


def offer(folder: Path, number: int, profile: str, *, prompt: str | None = None) -> Bundle:
    """Publish the small model with an adapter of its own, or with a system prompt alone; return that bundle."""
    adapter = None if prompt else material.lora_gguf(folder / f"lora-{number}.gguf", seed=number, scale=0.05)
    made = material.tiny_bundle(folder / f"plain-{number}", adapter=adapter, system_prompt=prompt)
    bundle = open_bundle(material.compiled_for(made, profile, folder / f"bundle-{number}"))
    publish(bundle.folder, folder / "repository", keys=folder / "keys")
    return bundle


def write_card(folder: Path, port: int) -> Path:
    """Write what the device is told: a name, a network, the repository on that port of the host, keys."""
    card = folder / "card"
    card.mkdir()
    shutil.copy(folder / "keys/root.json", card)
    settings = f'host = "0.0.0.0"\nrepository = "http://{HOST}:{port}"\nfetch_kb_s = {FETCH_KB_S}'
    (card / "fieldlm.toml").write_text(
        f'name = "kiosk-17"\n[wifi]\nssid = "Shop"\npassword = "{KEY}"\n[settings]\n{settings}\n'
        f'[keys]\ntrust = "root.json"\napi_keys = ["{KEY}"]\n'
    )
    return card


def build(folder: Path, board: str, bundle: Path, card: Path, *, is_read_only: bool) -> Path:
    """Return an image that serves `bundle` and is told what lies in `card`."""
    command = [sys.executable, ROOT / "packaging/build_image.py", "--board", board, "--bundle", bundle]
    command += ["--provision", card, "--cmdline", f"console={CONSOLES[board]}"]
    command += ["--work", folder / "work", "--out", folder, *(["--read-only"] if is_read_only else [])]
    subprocess.run(command, check=True)
    return next(folder.glob("fieldlm_*.img"))


@pytest.mark.parametrize(("board", "is_read_only"), CASES)
def test_a_device_of_the_image_serves_updates_and_survives_power_cuts(
    tmp_path: Path, board: str, is_read_only: bool
) -> None:
    profile = PROFILES[board]
    factory = open_bundle(material.compiled_for(material.tiny_bundle(tmp_path / "tiny"), profile, tmp_path / "factory"))
    first = offer(tmp_path, 0, profile)
    with served(tmp_path / "repository") as repository:
        card = write_card(tmp_path, repository.server_port)
        image = build(tmp_path, board, factory.folder, card, is_read_only=is_read_only)
        if board == "pi4":
            check_pi_card(image, tmp_path)
        machine = VirtualMachine(image, tmp_path, board, key=KEY)
        try:
            use(machine, repository, tmp_path, [factory, first])
        finally:
            machine.cut_power()
            print(machine.console)
    check_disk(machine.disk)


def use(machine: VirtualMachine, repository: Repository, folder: Path, bundles: list[Bundle]) -> None:
    """Let it serve, and cut its power in each update but the last; `bundles` are what it has and what is offered."""
    profile = bundles[0].manifest.profile
    for number, share in enumerate(CUT_AFTER, start=1):
        enough = repository.sent_bytes + share * (bundles[-1].folder / "adapter.gguf").stat().st_size
        machine.power_on()
        machine.wait_ready()
        assert machine.generation() in {bundle.generation for bundle in bundles[:-1]}
        assert machine.chat("Name a colour.")[0] == 200
        assert machine.ask("POST", "/v1/fieldlm/update", {})[0] == 202
        machine.wait_until("the update is on its way", partial(has_sent, repository, enough))
        machine.cut_power()
        bundles.append(offer(folder, number, profile))
    # Words alone: a rehearsal of weights would find an emulated processor too slow, as it should.
    bundles.append(offer(folder, len(bundles), profile, prompt="You work in a shop."))
    machine.power_on()
    machine.wait_ready()
    assert machine.generation() in {bundle.generation for bundle in bundles[:-1]}
    assert machine.ask("POST", "/v1/fieldlm/update", {})[0] == 202
    machine.wait_until("the newest serves", lambda: machine.generation() == bundles[-1].generation)
    assert machine.chat("Name a colour.")[0] == 200
    assert machine.ask("GET", "/v1/fieldlm/status")[1]["device"] == "kiosk-17"
    machine.cut_power()
    machine.power_on()
    machine.wait_ready()
    assert machine.generation() == bundles[-1].generation


def has_sent(repository: Repository, enough: float) -> bool:
    return repository.sent_bytes >= enough


def check_disk(disk: Path) -> None:
    """The secrets have left the boot partition, also its free blocks, and the last one has grown to the disk's end."""
    table = json.loads(subprocess.check_output(["sfdisk", "--json", disk]))["partitiontable"]["partitions"]
    with disk.open("rb") as file:
        file.seek(table[0]["start"] * 512)
        boot = file.read(table[0]["size"] * 512)
    assert KEY.encode() not in boot
    end = (table[2]["start"] + table[2]["size"]) * 512
    assert disk.stat().st_size - end < 8 << 20


def check_pi_card(image: Path, folder: Path) -> None:
    """The first partition is one that a Raspberry Pi's firmware opens, with all that it asks for on a Pi 4."""
    table = json.loads(subprocess.check_output(["sfdisk", "--json", image]))["partitiontable"]
    assert (table["label"], table["partitions"][0]["type"]) == ("dos", "c")
    (card := folder / "card-of-image").mkdir()
    first = f"{image}@@{table['partitions'][0]['start'] * 512}"
    subprocess.run(["mcopy", "-s", "-Q", "-i", first, "::", card], check=True)
    lines = (card / "config.txt").read_text().splitlines()
    (kernel,) = [line.removeprefix("kernel=") for line in lines if line.startswith("kernel=")]
    (initial,) = [line.removeprefix("initramfs ") for line in lines if line.startswith("initramfs ")]
    assert (card / kernel).read_bytes()[56:60] == b"ARMd", "the magic number of a kernel for arm64"
    assert (card / initial).read_bytes().startswith(b"\x28\xb5\x2f\xfd"), "zstd"
    for name in ("bcm2711-rpi-4-b.dtb", "bcm2711-rpi-400.dtb", "bcm2837-rpi-3-b.dtb"):
        assert (card / name).read_bytes().startswith(b"\xd0\x0d\xfe\xed"), "a device tree"
    for name in ("start4.elf", "fixup4.dat", "bootcode.bin", "start.elf", "fixup.dat", "LICENCE.raspi-firmware"):
        assert (card / name).stat().st_size > 0
    words = (card / "cmdline.txt").read_text().split("\n")
    assert len(words) == 2, "one line"
    assert {"root=LABEL=fieldlm-root", "rootwait", "ro"} <= set(words[0].split())
