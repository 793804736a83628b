"""Both wheels as PyPI shows them: who made them, under which licence, and links that work there."""

import base64
import hashlib
import os
import re
import subprocess
import sys
import zipfile
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

import pytest

from tests.support.debian_root import ROOT

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


def test_the_wheels_of_a_device_hold_each_library_once_and_take_150_mb(smollm2_gguf: Path, tmp_path: Path) -> None:
    """What `make wheels` does, and a device with it: without a network and without a compiler."""
    wheels, device = tmp_path / "wheels", tmp_path / "device"
    made = [sys.executable, ROOT / "packaging/build_wheels.py", "--out", wheels]
    subprocess.run(made, check=True, stdout=subprocess.DEVNULL)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", device], check=True)
    into = [sys.executable, "-m", "pip", "--python", device / "bin/python", "install", "-qq", "--no-index"]
    subprocess.run([*into, "--find-links", wheels, "fieldlm"], check=True)
    (packages,) = device.glob("lib/python*/site-packages")
    libraries = [path.name.partition(".so")[0] for path in packages.rglob("lib*.so*") if "llama_cpp" in path.parts]
    assert sorted(libraries) == ["libggml", "libggml", "libggml-base", "libggml-cpu", "libllama", "libmtmd"]
    assert not (packages / "lib").exists()
    assert sum(path.stat().st_size for path in packages.rglob("*") if path.is_file()) <= 150e6
    for line in next(packages.glob("llama_cpp_python-*.dist-info/RECORD")).read_text().splitlines():
        name, digest, _ = line.rsplit(",", 2)
        if digest:
            found = base64.urlsafe_b64encode(hashlib.sha256((packages / name).read_bytes()).digest())
            assert digest == f"sha256={found.rstrip(b'=').decode()}"
    asked = [device / "bin/fieldlm", "run", smollm2_gguf, "Say hello.", "--max-tokens", "4"]
    here = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": ""}
    assert subprocess.run(asked, env=here, check=True, capture_output=True, text=True).stdout.strip()
