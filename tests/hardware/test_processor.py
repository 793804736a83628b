"""What was built for another processor says so, in one line, before its library is loaded."""

from pathlib import Path

import pytest

from fieldlm.core.errors import EngineError
from fieldlm.hardware.processor import check_least, check_processor


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    path = tmp_path / "cpuinfo"
    path.write_text("model name : Example\nflags : fpu sse4_2 avx avx2 fma\n")
    return path


def test_every_instruction_set_that_is_missing_is_named(tmp_path: Path, cpuinfo: Path) -> None:
    flags = tmp_path / "cpu-flags"
    flags.write_text("avx avx2 avx512f avx_vnni\n")
    with pytest.raises(EngineError, match="built for processors with avx512f, avx_vnni, which this one lacks"):
        check_processor(flags, cpuinfo)


def test_a_processor_that_has_them_all_passes_as_does_one_that_built_it(tmp_path: Path, cpuinfo: Path) -> None:
    flags = tmp_path / "cpu-flags"
    flags.write_text("avx avx2\n")
    check_processor(flags, cpuinfo)
    check_processor(tmp_path / "none", cpuinfo)


def test_a_processor_that_is_older_than_any_library_here_is_named(tmp_path: Path, cpuinfo: Path) -> None:
    with pytest.raises(EngineError, match="this processor lacks ssse3, sse4_1, popcnt, which numpy and"):
        check_least(cpuinfo, "x86_64")
    cpuinfo.write_text("Features : fp asimd\n")
    check_least(cpuinfo, "aarch64")
    check_least(cpuinfo, "x86_64")
    check_least(tmp_path / "none", "x86_64")
