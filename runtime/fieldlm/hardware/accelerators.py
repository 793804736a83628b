"""GPUs and NPUs that this machine has, whether or not anything uses them, and what would.

Presence is not function: what is named here was seen on a bus, in a driver's folder or in the chip's data sheet, and
was not tried. llama.cpp says what it can compute on (`fieldlm doctor`).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

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


class _Known(NamedTuple):
    kind: Literal["gpu", "npu"]
    name: str
    vendor: str
    build: Build
    use: str


NO_MODELS = "small vision models; there is no way to run a language model on it"
PI_GPU = f"{VULKAN}; nobody saw a gain (mozilla-ai/llamafile 226)"
# PCI vendor and class, as far as given: 03 shows pictures, 12 accelerates.
PCI = {
    ("0x10de", "0x03"): _Known("gpu", "NVIDIA GPU", "nvidia", "cuda", CUDA),
    ("0x1002", "0x03"): _Known("gpu", "AMD GPU", "amd", "vulkan", UNTRIED),
    ("0x8086", "0x03"): _Known("gpu", "Intel GPU", "intel", "vulkan", UNTRIED),
    ("0x8086", "0x12"): _Known(
        "npu", "Intel NPU", "intel", "", "OpenVINO; on Lunar Lake the GPU was ten times as fast (elizaOS/eliza PR 7632)"
    ),
    ("0x1e60", ""): _Known(
        "npu", "Hailo", "hailo", "",
        "hailo-ollama, on a Hailo-10H alone; a Pi 5's processor was faster with some models (hardware-corner.net)",
    ),
    ("0x1ac1", ""): _Known("npu", "Coral Edge TPU", "google", "", NO_MODELS),
}  # fmt: skip
XDNA = _Known("npu", "AMD XDNA NPU", "amd", "", "Lemonade (lemonade-server.ai), with models of its own")
# Those whose class other parts share: Phoenix and Hawk Point; Strix, Krackan and Strix Halo.
PCI_DEVICES = {("0x1022", "0x1502"): XDNA, ("0x1022", "0x17f0"): XDNA}
# Drivers of GPUs and NPUs that sit in the chip.
DRIVERS = {
    "asahi": _Known("gpu", "Apple GPU", "apple", "vulkan", UNTRIED),
    "msm": _Known("gpu", "Adreno", "qualcomm", "vulkan", UNTRIED),
    "msm-mdss": _Known("gpu", "Adreno", "qualcomm", "vulkan", UNTRIED),
    "msm_dpu": _Known("gpu", "Adreno", "qualcomm", "vulkan", UNTRIED),
    "panfrost": _Known("gpu", "Mali", "arm", "vulkan", UNTRIED),
    "panthor": _Known("gpu", "Mali", "arm", "vulkan", UNTRIED),
    "amdxdna": XDNA,
    "v3d": _Known("gpu", "VideoCore", "broadcom", "vulkan", PI_GPU),
    "rocket": _Known("npu", "RKNPU", "rockchip", "", "RKLLM, with Rockchip's own kernel"),
    "RKNPU": _Known("npu", "RKNPU", "rockchip", "", "RKLLM (airockchip/rknn-llm)"),
}
ORIN = _Known("gpu", "NVIDIA Ampere", "nvidia", "cuda", CUDA)
RKLLM = "RKLLM, with Rockchip's own kernel (airockchip/rknn-llm)"
# Chips whose parts need no driver to be known of.
CHIPS = {
    "nvidia,tegra210": _Known(
        "gpu",
        "NVIDIA Maxwell",
        "nvidia",
        "",
        "what nobody has today: its CUDA ends with 10.2, which llama.cpp does not take",
    ),
    "nvidia,tegra194": _Known("gpu", "NVIDIA Volta", "nvidia", "cuda", f"{CUDA}; not tried with JetPack 5's CUDA 11.4"),
    "nvidia,tegra234": ORIN,
    "nvidia,tegra264": _Known("gpu", "NVIDIA Blackwell", "nvidia", "cuda", CUDA),
    "rockchip,rk3566": _Known(
        "npu", "RKNPU", "rockchip", "", "small vision models (RKNN); RKLLM does not know this chip"
    ),
    "rockchip,rk3568": _Known(
        "npu", "RKNPU", "rockchip", "", "small vision models (RKNN); RKLLM does not know this chip"
    ),
    "rockchip,rk3576": _Known("npu", "RKNPU, 6 TOPS", "rockchip", "", RKLLM),
    "rockchip,rk3588": _Known("npu", "RKNPU, 6 TOPS", "rockchip", "", RKLLM),
    "rockchip,rk3588s": _Known("npu", "RKNPU, 6 TOPS", "rockchip", "", RKLLM),
    "qcom,qcm6490": _Known("npu", "Hexagon", "qualcomm", "", "GenieX (qualcomm), with models of its own"),
    "qcom,x1e80100": _Known("npu", "Hexagon", "qualcomm", "", "GenieX (qualcomm), with models of its own"),
}
NOUVEAU = "NVIDIA's own driver (this is the open one, without CUDA); then "


def accelerators(root: Path, chips: tuple[str, ...]) -> tuple[PresentAccelerator, ...]:
    """Return what the buses, the drivers and the names of the chip show, each once; `chips` are the device tree's."""
    seen = [*_on_pci(root), *_of_drivers(root), *(CHIPS[chip] for chip in chips if chip in CHIPS)]
    if has_cuda := (root / "proc/driver/nvidia/version").exists():
        # In a container, or where /sys is not shown; a Jetson's GPU is known by its chip.
        seen.append(PCI["0x10de", "0x03"])
    once: dict[tuple[str, str], _Known] = {}
    for each in seen:
        once.setdefault((each.kind, each.vendor), each)
    return tuple(_found(root, each, has_cuda=has_cuda) for each in once.values())


def _found(root: Path, known: _Known, *, has_cuda: bool) -> PresentAccelerator:
    name, use = known.name, known.use
    if known is PCI["0x10de", "0x03"]:
        name = _nvidia_name(root) or name
        use = use if has_cuda else NOUVEAU + use
    return PresentAccelerator(kind=known.kind, name=name, vendor=known.vendor, build=known.build, use=use)


def _on_pci(root: Path) -> Iterator[_Known]:
    """Yield what hangs on a PCI bus, or on what a graphics driver shows of it."""
    seen = {
        (read_text(device, "vendor"), read_text(device, "class") or "0x03", read_text(device, "device"))
        for pattern in ("sys/bus/pci/devices/*", "sys/class/drm/card[0-9]*/device")
        for device in sorted(root.glob(pattern))
    }
    for vendor, kind, device in sorted(seen):
        yield from (known for (maker, start), known in PCI.items() if maker == vendor and kind.startswith(start))
        yield from (known for each, known in PCI_DEVICES.items() if each == (vendor, device))


def _of_drivers(root: Path) -> Iterator[_Known]:
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
