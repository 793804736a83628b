"""A device made of an image: QEMU boots it by its own loader from UEFI, and killing QEMU is cutting its power.

A Raspberry Pi's firmware is not to be had there: what it does is done here (`_as_firmware_does`). What the guest has
not flushed is lost then, as on a real disk without a cache of its own. The host is 10.0.2.2 for it.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from tests.support.served_process import free_port

HOST = "10.0.2.2"
"""The machine that runs the test, as the guest calls it."""
PATIENCE_S = 3600.0  # a guard against waiting for ever; without KVM a boot takes minutes
LOOK_S = 0.5
KVM_FAULT = "KVM internal error"
"""What QEMU says where KVM cannot run firmware, as within some other virtual machines; then it does without KVM."""


@dataclass(frozen=True)
class Kind:
    """How QEMU is called for an architecture: program, machine, firmware, what that keeps at first.

    Without firmware the machine starts from a card.
    """

    program: str
    machine: str
    processor: str
    emulated: str
    """The processor without KVM: one that costs little to imitate."""
    code: str = ""
    settings: str = ""


KINDS = {
    "generic-amd64": Kind(
        "qemu-system-x86_64",
        "q35",
        "max,arch-capabilities=off",  # within another virtual machine KVM cannot set that one
        "max,arch-capabilities=off",
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_VARS_4M.fd",
    ),
    "generic-arm64": Kind(
        "qemu-system-aarch64",
        "virt",
        "max",
        "cortex-a76",  # "max" signs pointers, which takes most of the time
        "/usr/share/AAVMF/AAVMF_CODE.fd",
        "/usr/share/AAVMF/AAVMF_VARS.fd",
    ),
    # The Raspberry Pi 3: QEMU's 4, which it has from 9.0 on, has no network.
    "pi4": Kind("qemu-system-aarch64", "raspi3b", "cortex-a53", "cortex-a53"),
}
PI_TREE = "bcm2837-rpi-3-b.dtb"


def boards_that_boot() -> list[str]:
    """Return the boards for which this machine has QEMU, its firmware, and what builds an image for them."""
    boards: list[str] = []
    for board, kind in KINDS.items():
        is_native = kind.program == f"qemu-system-{platform.machine()}"
        machine = kind.program.removeprefix("qemu-system-")
        builds = Path(f"/proc/sys/fs/binfmt_misc/qemu-{machine}").exists() and shutil.which(f"{machine}-linux-gnu-g++")
        has_firmware = not kind.code or Path(kind.code).exists()
        if shutil.which(kind.program) and has_firmware and (is_native or builds):
            boards.append(board)
    return boards


class VirtualMachine:
    """One device: a copy of `image` as its disk, `disk_mb` long, with `key` for its API."""

    def __init__(self, image: Path, folder: Path, board: str, *, key: str, disk_mb: int = 4096) -> None:
        self.disk, self._settings, self._boot = folder / "disk.img", folder / "uefi.fd", folder / "boot"
        self.console_file, self._kind, self._key = folder / "console.log", KINDS[board], key
        subprocess.run(["cp", "--sparse=always", image, self.disk], check=True)
        os.truncate(self.disk, max(disk_mb << 20, self.disk.stat().st_size))
        if self._kind.settings:
            shutil.copy(self._kind.settings, self._settings)
        self._process: subprocess.Popen[bytes] | None = None
        self.port = 0
        is_native = platform.machine() in self._kind.program
        has_kvm = is_native and bool(self._kind.code) and os.access("/dev/kvm", os.R_OK | os.W_OK)
        self._accelerator = "kvm" if has_kvm else "tcg"

    def power_on(self) -> None:
        self.port = free_port()
        kind = self._kind
        command = [kind.program, "-machine", f"{kind.machine},accel={self._accelerator}"]
        command += ["-cpu", kind.processor if self._accelerator == "kvm" else kind.emulated]
        command += self._from_uefi() if kind.code else self._as_firmware_does()
        command += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{self.port}-:8080"]
        command += ["-display", "none", "-monitor", "none", "-serial", "stdio", "-no-reboot"]
        with self.console_file.open("ab") as console:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=console, stderr=console)

    def _from_uefi(self) -> list[str]:
        firmware = f"if=pflash,unit=0,format=raw,readonly=on,file={self._kind.code}"
        settings = f"if=pflash,unit=1,format=raw,file={self._settings}"
        options = ["-m", "2048", "-smp", "2", "-drive", firmware, "-drive", settings]
        options += ["-drive", f"if=none,id=disk,format=raw,file={self.disk}", "-device", "virtio-blk-pci,drive=disk"]
        return [*options, "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci"]

    def _as_firmware_does(self) -> list[str]:
        """Start what config.txt on the card's first partition names, with the words of cmdline.txt."""
        shutil.rmtree(self._boot, ignore_errors=True)
        self._boot.mkdir()
        table = json.loads(subprocess.check_output(["sfdisk", "--json", self.disk]))["partitiontable"]["partitions"]
        first = f"{self.disk}@@{table[0]['start'] * 512}"
        subprocess.run(["mcopy", "-s", "-Q", "-n", "-i", first, "::", self._boot], check=True)
        config = (self._boot / "config.txt").read_text()
        kernel, initial = (re.findall(rf"(?m)^{name}(.+)$", config)[0] for name in ("kernel=", "initramfs "))
        words = (self._boot / "cmdline.txt").read_text().strip()
        options = ["-kernel", self._boot / kernel, "-initrd", self._boot / initial, "-dtb", self._boot / PI_TREE]
        return [
            *map(str, options),
            *("-append", words, "-m", "1024", "-smp", "4", "-device", "usb-net,netdev=net"),
            *("-drive", f"if=sd,format=raw,file={self.disk}"),
        ]

    def cut_power(self) -> None:
        """End it in the middle of whatever it does."""
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def console(self) -> str:
        return self.console_file.read_text(errors="replace")

    def ask(self, method: str, path: str, body: Any = None, *, timeout_s: float = 300) -> tuple[int, Any]:
        """Return status and document; status 0 while nobody answers."""
        headers = {"authorization": f"Bearer {self._key}"}
        try:
            answer = httpx.request(
                method,
                f"http://127.0.0.1:{self.port}{path}",
                json=body,
                headers=headers,
                timeout=timeout_s,
                trust_env=False,
            )
            return answer.status_code, answer.json() if answer.content else None
        except (httpx.HTTPError, ValueError):
            return 0, None

    def chat(self, text: str) -> tuple[int, Any]:
        body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
        return self.ask("POST", "/v1/chat/completions", body)

    def generation(self) -> str:
        document = self.ask("GET", "/v1/fieldlm/status")[1]
        return str(document["generation"]) if document else ""

    def wait_until(self, what: str, is_true: Callable[[], bool]) -> None:
        deadline_s = time.monotonic() + PATIENCE_S
        while not is_true():
            assert self._process, "the power is off"
            if self._accelerator == "kvm" and KVM_FAULT in self.console:
                self.cut_power()
                self._accelerator = "tcg"
                self.power_on()
                continue
            assert self._process.poll() is None, f"QEMU ended; {what} is awaited\n{self.console[-4000:]}"
            assert time.monotonic() < deadline_s, f"not within {PATIENCE_S:.0f} s: {what}\n{self.console[-4000:]}"
            time.sleep(LOOK_S)

    def wait_ready(self) -> None:
        # QEMU takes a connection for a guest that does not run, too.
        self.wait_until("ready", lambda: self.ask("GET", "/ready", timeout_s=30)[0] == 200)
