"""Both wheels as PyPI shows them: who made them, under which licence, and links that work there."""

import base64
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.support.debian_root import ROOT
from tests.support.material import cut_gguf

HOME = "https://github.com/example/fieldlm"
LINK = re.compile(r"\]\(([^)]+)\)")


def built(half: str, folder: Path, repository: str) -> tuple[Message, list[str]]:
    """Return the metadata of a wheel that was built from a source distribution, and the files of its licence."""
    command = [sys.executable, "-m", "build", "--outdir", folder, ROOT / half]
    environment = {**os.environ, "GITHUB_REPOSITORY": repository}
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (path,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        licences = [name for name in archive.namelist() if "/licenses/" in name]
        return HeaderParser().parsestr(archive.read(path).decode()), licences


@pytest.mark.parametrize("half", [".", "compiler"])
def test_a_wheel_says_who_made_it_and_its_links_work_on_pypi(half: str, tmp_path: Path) -> None:
    metadata, licences = built(half, tmp_path, "example/fieldlm")
    assert metadata["Author"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert [Path(name).name for name in licences] == ["LICENSE"]
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(metadata.get_all("Classifier", []))
    pages = dict(line.split(", ") for line in metadata.get_all("Project-URL", []))
    assert pages["Homepage"] == HOME
    links = [*LINK.findall(str(metadata.get_payload())), *pages.values()]
    assert links
    for link in links:
        assert link.startswith("https://")
        if link.startswith(f"{HOME}/blob/main/"):
            assert (ROOT / link.removeprefix(f"{HOME}/blob/main/").partition("#")[0]).exists(), link


def test_a_wheel_that_was_built_nowhere_has_no_link_that_leads_nowhere(tmp_path: Path) -> None:
    (tmp_path / "clone").mkdir()
    tracked = subprocess.run(["git", "-C", ROOT, "ls-files", "-z"], capture_output=True, check=True).stdout
    subprocess.run(["tar", "-C", ROOT, "--null", "-T-", "-cf", tmp_path / "clone.tar"], input=tracked, check=True)
    subprocess.run(["tar", "-C", tmp_path / "clone", "-xf", tmp_path / "clone.tar"], check=True)
    metadata, _ = built(str(tmp_path / "clone"), tmp_path / "dist", "")
    assert metadata.get_all("Project-URL") is None
    assert all(link.startswith("https://") for link in LINK.findall(str(metadata.get_payload())))


def test_both_halves_have_the_same_licence_and_the_citation_its_version() -> None:
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "compiler/LICENSE").read_bytes()
    version = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version
    assert f"\nversion: {version[1]}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.fixture(scope="session")
def device(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an environment made of what `make wheels` makes, without a network and without a compiler."""
    folder = tmp_path_factory.mktemp("wheels")
    made = [sys.executable, ROOT / "packaging/build_wheels.py", "--out", folder / "wheels"]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "device"], check=True)
    into = [sys.executable, "-m", "pip", "--python", folder / "device/bin/python", "install", "-qq", "--no-index"]
    subprocess.run([*into, "--find-links", folder / "wheels", "fieldlm"], check=True)
    return folder / "device"


def test_the_wheels_of_a_device_hold_each_library_once_and_take_150_mb(device: Path) -> None:
    (packages,) = device.glob("lib/python*/site-packages")
    libraries = [path.name.partition(".so")[0] for path in packages.rglob("lib*.so*") if "llama_cpp" in path.parts]
    kernels = [name for name in libraries if name.startswith("libggml-cpu-")]
    assert len(set(kernels)) == len(kernels) >= 4
    assert sorted(set(libraries) - set(kernels)) == ["libggml", "libggml-base", "libllama"]
    assert len(libraries) == len(kernels) + 4, "ggml is opened under two names"
    assert not (packages / "lib").exists()
    assert sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) <= 150e6
    for line in next(packages.glob("llama_cpp_python-*.dist-info/RECORD")).read_text().splitlines():
        name, digest, _ = line.rsplit(",", 2)
        if digest:
            found = base64.urlsafe_b64encode(hashlib.sha256((packages / name).read_bytes()).digest())
            assert digest == f"sha256={found.rstrip(b'=').decode()}"


ANSWER = """
import ctypes, sys
from fieldlm.engines.llama_kernels import library
from llama_cpp import llama_print_system_info
if len(sys.argv) > 2:
    library().ggml_backend_load.restype = ctypes.c_void_p
    if not library().ggml_backend_load(sys.argv[2].encode()):
        sys.exit(77)
from fieldlm.cli.main import main
code = main(["run", sys.argv[1], "Name the days of the week.", "--max-tokens", "6", "--threads", "1"])
print("\\0" + llama_print_system_info().decode())
sys.exit(code)
"""
UNFIT = 77
Q8_0 = 8
IMITATED = {
    "x86_64": {"Nehalem": set(), "SandyBridge": {"AVX"}, "Haswell": {"AVX", "AVX2"}},
    "aarch64": {"cortex-a53": set(), "cortex-a76": {"DOTPROD"}, "max": {"DOTPROD", "SVE"}},
}
"""Processors as qemu calls them → of the instruction sets in TOLD, those whose kernels it can imitate."""
UNFITTING = {"x86_64": ("zen4", "Nehalem"), "aarch64": ("armv8.2_2", "cortex-a53")}
"""A kernel → a processor that cannot run it."""
TOLD = {"AVX", "AVX2", "DOTPROD", "SVE"}


def answered(device: Path, model: Path, home: Path, *more: str | Path, imitate: Sequence[str] = ()) -> tuple[str, str]:
    """Return what the device answers, and which instruction sets its kernels say they use."""
    command = [*imitate, device / "bin/python", "-I", "-c", ANSWER, model, *more]
    here = {"XDG_CACHE_HOME": str(home), "PATH": os.environ["PATH"]}
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    if done.returncode == UNFIT:
        return "", ""
    assert done.returncode == 0, f"{done.returncode}: {done.stdout}{done.stderr}"
    answer, _, system = done.stdout.partition("\0")
    assert answer.strip()
    return answer, system


def test_every_kernel_that_this_processor_can_run_answers_alike(
    device: Path, smollm2_gguf: Path, tmp_path: Path
) -> None:
    (folder,) = device.glob("lib/python*/site-packages/llama_cpp/lib")
    answers = {
        path.name: answered(device, smollm2_gguf, tmp_path, path)[0] for path in sorted(folder.glob("libggml-cpu-*"))
    }
    chosen, _ = answered(device, smollm2_gguf, tmp_path)
    fitting = [answer for answer in answers.values() if answer]
    assert len(fitting) >= 2
    assert set(fitting) == {chosen}, answers


@pytest.fixture(scope="module")
def few_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model that an imitated processor computes in a minute, in the type that most kernels are made for."""
    return cut_gguf(tmp_path_factory.mktemp("cut") / "model.gguf", layers=3, kind=Q8_0, vocabulary=8192)


@pytest.mark.parametrize("processor", IMITATED[platform.machine()])
def test_a_lesser_processor_takes_lesser_kernels_and_answers_alike(
    device: Path, qemu: str, processor: str, few_layers: Path, tmp_path: Path
) -> None:
    answer, system = answered(device, few_layers, tmp_path, imitate=[qemu, "-cpu", processor])
    assert set(re.findall(r"(\w+) = 1", system)) & TOLD == IMITATED[platform.machine()][processor]
    assert answer == answered(device, few_layers, tmp_path)[0]


def test_a_processor_that_no_kernel_fits_is_told_so_in_one_line(
    device: Path, qemu: str, smollm2_gguf: Path, tmp_path: Path
) -> None:
    kernel, processor = UNFITTING[platform.machine()]
    (packages,) = device.glob("lib/python*/site-packages")
    shutil.copytree(packages / "llama_cpp", tmp_path / "llama_cpp")
    for path in tmp_path.glob("llama_cpp/lib/libggml-cpu-*"):
        if path.stem != f"libggml-cpu-{kernel}":
            path.unlink()
    command = [qemu, "-cpu", processor, device / "bin/python", "-m", "fieldlm", "run", smollm2_gguf, "Hello"]
    here = {"XDG_CACHE_HOME": str(tmp_path), "PATH": os.environ["PATH"], "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"\nfieldlm run: llama.cpp has kernels for {kernel} here, and this one can run none of them; " in done.stderr
