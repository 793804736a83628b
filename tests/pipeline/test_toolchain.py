"""The converter, fetched once and checked."""

import io
import tarfile
from pathlib import Path

import pytest

from fieldlm.core.errors import InputError
from fieldlm_compiler.pipeline import llama_toolchain

ROOT = "llama_cpp_python-0.3.36/vendor/llama.cpp"


def sdist(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = 4
            archive.addfile(member, io.BytesIO(b"text"))
    return path


def test_only_the_converter_is_unpacked(tmp_path: Path) -> None:
    archive = sdist(
        tmp_path / "a.tar.gz",
        f"{ROOT}/convert_hf_to_gguf.py",
        f"{ROOT}/conversion/llama.py",
        f"{ROOT}/src/llama.cpp",
        "llama_cpp_python-0.3.36/setup.py",
    )
    llama_toolchain.unpack(archive, tmp_path / "out")
    files = sorted(path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.*"))
    assert files == ["conversion/llama.py", "convert_hf_to_gguf.py"]


def test_a_name_that_climbs_out_is_refused(tmp_path: Path) -> None:
    archive = sdist(tmp_path / "a.tar.gz", f"{ROOT}/conversion/../../../../evil.py")
    with pytest.raises(InputError, match="names a file outside its folder"):
        llama_toolchain.unpack(archive, tmp_path / "out")
    assert not list(tmp_path.rglob("evil.py"))


def test_a_distribution_without_converter_is_refused(tmp_path: Path) -> None:
    archive = sdist(tmp_path / "a.tar.gz", "llama_cpp_python-0.3.36/setup.py")
    with pytest.raises(InputError, match=r"carries no convert_hf_to_gguf\.py"):
        llama_toolchain.unpack(archive, tmp_path / "out")


def test_other_bytes_than_the_pinned_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "fieldlm" / "toolchains"
    folder.mkdir(parents=True)
    sdist(folder / "llama_cpp_python-0.3.36.tar.gz", f"{ROOT}/convert_hf_to_gguf.py")
    with pytest.raises(InputError, match=r"has SHA-256 \w+, expected 832db0"):
        llama_toolchain.llama_converter()
    assert [path.name for path in folder.iterdir() if not path.name.startswith(".")] == [
        "llama_cpp_python-0.3.36.tar.gz"
    ]


def test_the_converter_knows_the_models_that_matter() -> None:
    known = llama_toolchain.supported_architectures(llama_toolchain.llama_converter())
    assert {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Gemma3ForCausalLM", "Phi3ForCausalLM"} <= known


def test_the_versions_name_the_converter_by_its_digest() -> None:
    versions = llama_toolchain.versions()
    assert versions["llama.cpp-converter"].startswith("sha256:832db069")
    assert versions["llama-cpp-python"] == "0.3.36"
