"""Kernels of llama.cpp: the best are loaded that processor and system grant; a build for one machine loads nothing."""

from pathlib import Path

import pytest

from fieldlm.engines.llama_kernels import best_granted, load_kernels

ZEN4 = {"sse42": 5, "sandybridge": 21, "haswell": 63, "alderlake": 0, "skylakex": 191, "icelake": 1471, "zen4": 1983}
FLAGS = "flags : fpu sse4_2 avx avx2 avx512f\n"


@pytest.mark.parametrize(
    ("taken", "best"), [((), None), (("avx512f",), "haswell"), (("avx512f", "avx2", "avx"), "sse42")]
)
def test_kernels_whose_registers_the_system_withholds_are_passed_over(
    taken: tuple[str, ...], best: str | None, tmp_path: Path
) -> None:
    words = [word for word in FLAGS.split() if word not in taken]
    (tmp_path / "cpuinfo").write_text(" ".join(words))
    assert best_granted(ZEN4, tmp_path / "cpuinfo") == best


def test_where_the_system_shows_another_kind_of_processor_llama_cpp_chooses(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("Features : fp asimd\n")
    assert best_granted(ZEN4, tmp_path / "cpuinfo") is None
    assert best_granted(ZEN4, tmp_path / "none") is None


def test_the_kernels_of_this_environment_are_there_and_asking_twice_changes_nothing() -> None:
    from llama_cpp import llama_print_system_info

    load_kernels()
    first = llama_print_system_info()
    load_kernels()
    assert llama_print_system_info() == first
    assert b"CPU : " in first
