"""GPUs and NPUs that this machine has, whether or not anything uses them, and what would.

Presence is not function: what is named here was seen on a bus, in a driver's folder or in the chip's data sheet, and
was not tried. llama.cpp says what it can compute on (`fieldlm doctor`).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec

from fieldlm.hardware.limits import read_text

Build = Literal["", "cuda", "metal", "vulkan"]
CUDA = 'llama.cpp built with CMAKE_ARGS="-DGGML_CUDA=on", and a profile that promises it'
VULKAN = 'llama.cpp built with CMAKE_ARGS="-DGGML_VULKAN=on", and a profile of yours that promises it'
UNTRIED = f"{VULKAN}; not tried here"


class PresentAccelerator(msgspec.Struct, frozen=True, kw_only=True):
    """A GPU or NPU. `build` is the kind of llama.cpp that computes on it, "" where none does; `use` says what would."""

    kind: Literal["gpu", "npu"]
    name: str
    vendor: str
    build: Build = ""
    use: str


def _gpu(name: str, vendor: str, use: str, build: Build = "vulkan") -> PresentAccelerator:
    return PresentAccelerator(kind="gpu", name=name, vendor=vendor, build=build, use=use)


def _npu(name: str, vendor: str, use: str) -> PresentAccelerator:
    return PresentAccelerator(kind="npu", name=name, vendor=vendor, use=use)


NVIDIA = _gpu("NVIDIA GPU", "nvidia", f"{CUDA} (docs/gpu.md)", "cuda")
OPENVINO = "OpenVINO; on Lunar Lake the GPU was ten times as fast (elizaOS/eliza PR 7632)"
HAILO = "hailo-ollama, on a Hailo-10H alone; a Pi 5 itself was faster with some models (hardware-corner.net)"
VISION = "small vision models; nobody runs a language model on it"
# PCI vendor and class, as far as given: 03 shows pictures, 12 accelerates.
PCI = {
    ("0x10de", "0x03"): NVIDIA,
    ("0x1002", "0x03"): _gpu("AMD GPU", "amd", UNTRIED),
    ("0x8086", "0x03"): _gpu("Intel GPU", "intel", UNTRIED),
    ("0x8086", "0x12"): _npu("Intel NPU", "intel", OPENVINO),
    ("0x1e60", ""): _npu("Hailo", "hailo", HAILO),
    ("0x1ac1", ""): _npu("Coral Edge TPU", "google", VISION),
}
XDNA = _npu("AMD XDNA NPU", "amd", "Lemonade (lemonade-server.ai), with models of its own")
# Those whose class other parts share: Phoenix and Hawk Point; Strix, Krackan and Strix Halo.
PCI_DEVICES = {("0x1022", "0x1502"): XDNA, ("0x1022", "0x17f0"): XDNA}
# Drivers of GPUs and NPUs that sit in the chip.
DRIVERS = {
    "asahi": _gpu("Apple GPU", "apple", UNTRIED),
    "msm": _gpu("Adreno", "qualcomm", UNTRIED),
    "msm-mdss": _gpu("Adreno", "qualcomm", UNTRIED),
    "msm_dpu": _gpu("Adreno", "qualcomm", UNTRIED),
    "panfrost": _gpu("Mali", "arm", UNTRIED),
    "panthor": _gpu("Mali", "arm", UNTRIED),
    "amdxdna": XDNA,
    "v3d": _gpu("VideoCore", "broadcom", f"{VULKAN}; nobody saw a gain (mozilla-ai/llamafile 226)"),
    "rocket": _npu("RKNPU", "rockchip", "RKLLM, with Rockchip's own kernel"),
    "RKNPU": _npu("RKNPU", "rockchip", "RKLLM (airockchip/rknn-llm)"),
}
RKLLM = "RKLLM, with Rockchip's own kernel (airockchip/rknn-llm)"
NO_RKLLM = "small vision models (RKNN); RKLLM does not know this chip"
OLD_CUDA = "what nobody has today: its CUDA ends with 10.2, which llama.cpp does not take"
# Chips whose parts need no driver to be known of.
CHIPS = {
    "nvidia,tegra210": _gpu("NVIDIA Maxwell", "nvidia", OLD_CUDA, ""),
    "nvidia,tegra194": _gpu("NVIDIA Volta", "nvidia", f"{CUDA}; not tried with JetPack 5's CUDA 11.4", "cuda"),
    "nvidia,tegra234": _gpu("NVIDIA Ampere", "nvidia", CUDA, "cuda"),
    "nvidia,tegra264": _gpu("NVIDIA Blackwell", "nvidia", CUDA, "cuda"),
    "rockchip,rk3566": _npu("RKNPU", "rockchip", NO_RKLLM),
    "rockchip,rk3568": _npu("RKNPU", "rockchip", NO_RKLLM),
    "rockchip,rk3576": _npu("RKNPU, 6 TOPS", "rockchip", RKLLM),
    "rockchip,rk3588": _npu("RKNPU, 6 TOPS", "rockchip", RKLLM),
    "rockchip,rk3588s": _npu("RKNPU, 6 TOPS", "rockchip", RKLLM),
    "qcom,qcm6490": _npu("Hexagon", "qualcomm", "GenieX (qualcomm)"),
    "qcom,x1e80100": _npu("Hexagon", "qualcomm", "GenieX (qualcomm)"),
}
NOUVEAU = "NVIDIA's own driver (this is the open one, without CUDA); then "


def accelerators(root: Path, chips: tuple[str, ...]) -> tuple[PresentAccelerator, ...]:
    """Return what the buses, the drivers and the names of the chip show, each once; `chips` are the device tree's."""
    seen = [*_on_pci(root), *_of_drivers(root), *(CHIPS[chip] for chip in chips if chip in CHIPS)]
    if has_cuda := (root / "proc/driver/nvidia/version").exists():
        # In a container, or where /sys is not shown; a Jetson's GPU is known by its chip.
        seen.append(NVIDIA)
    once: dict[tuple[str, str], PresentAccelerator] = {}
    for each in seen:
        once.setdefault((each.kind, each.vendor), each)
    return tuple(_found(root, each, has_cuda=has_cuda) for each in once.values())


def _found(root: Path, known: PresentAccelerator, *, has_cuda: bool) -> PresentAccelerator:
    if known is not NVIDIA:
        return known
    use = known.use if has_cuda else NOUVEAU + known.use
    return msgspec.structs.replace(known, name=_nvidia_name(root) or known.name, use=use)


def _on_pci(root: Path) -> Iterator[PresentAccelerator]:
    """Yield what hangs on a PCI bus, or on what a graphics driver shows of it."""
    seen = {
        (read_text(device, "vendor"), read_text(device, "class") or "0x03", read_text(device, "device"))
        for pattern in ("sys/bus/pci/devices/*", "sys/class/drm/card[0-9]*/device")
        for device in sorted(root.glob(pattern))
    }
    for vendor, kind, device in sorted(seen):
        yield from (known for (maker, start), known in PCI.items() if maker == vendor and kind.startswith(start))
        yield from (known for each, known in PCI_DEVICES.items() if each == (vendor, device))


def _of_drivers(root: Path) -> Iterator[PresentAccelerator]:
    for pattern in ("sys/class/drm/card[0-9]*/device", "sys/class/accel/accel[0-9]*/device"):
        for device in sorted(root.glob(pattern)):
            if driver := re.search(r"^DRIVER=(\S+)$", read_text(device, "uevent"), re.MULTILINE):
                yield from (known for name, known in DRIVERS.items() if name == driver[1])


def _nvidia_name(root: Path) -> str:
    """Return what NVIDIA's own driver calls its first GPU."""
    for path in sorted((root / "proc/driver/nvidia/gpus").glob("*/information")):
        if model := re.search(r"^Model:\s*(.+)$", read_text(path.parent, path.name), re.MULTILINE):
            return model[1].strip()
    return ""
