"""Every shipped profile is sound; every impossible one is refused for its reason."""

import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fieldlm.core.errors import ProfileError
from fieldlm.formats.profile import Profile, load_profile, profile_folder, profile_names, profile_sha256
from fieldlm.formats.profile_lint import cautions, kv_mb, lint

BOARDS = {
    "pi-zero-2w", "rpi4-4gb", "rpi4-8gb", "rpi5-4gb", "rpi5-8gb", "rk3588", "jetson-orin-nano-8gb", "jetson-agx-orin",
    "generic-aarch64", "generic-aarch64-dotprod", "generic-x86-64", "generic-x86-64-avx2", "laptop-avx2",
    "laptop-avx512", "laptop-nvidia", "apple-silicon",
}  # fmt: skip


@pytest.mark.parametrize("name", profile_names())
def test_every_shipped_profile_is_possible(name: str) -> None:
    assert lint(load_profile(name)) == []


@pytest.mark.parametrize("name", profile_names())
def test_every_number_in_a_shipped_profile_is_written_with_its_source(name: str) -> None:
    for line in (profile_folder() / f"{name}.toml").read_text().splitlines():
        if "{ value" in line and '"unknown"' not in line:
            assert re.search(r'kind = "(theory|measured|policy)", source = ".{6,}" }$', line), line


def test_the_boards_of_the_first_release_are_there() -> None:
    assert set(profile_names()) >= BOARDS


def test_a_profile_loads_by_name_and_by_path_alike() -> None:
    assert load_profile("rpi5-8gb") == load_profile(str(profile_folder() / "rpi5-8gb.toml"))


def test_a_number_keeps_its_kind_and_its_source() -> None:
    profile = load_profile("rpi5-8gb")
    assert profile.memory.bandwidth_gb_s == 17.0
    assert profile.sources["memory.bandwidth_gb_s"].kind == "theory"
    assert "bcm2712.adoc" in profile.sources["memory.bandwidth_gb_s"].source


def test_a_board_inherits_from_its_family_and_says_the_rest() -> None:
    board, family = load_profile("rpi5-8gb"), load_profile("generic-aarch64-dotprod")
    assert board.onnx == family.onnx
    assert board.cpu.decode_threads == 4
    assert family.cpu.decode_threads == 2
    assert not board.generic
    assert load_profile("rpi4-8gb").references == (), "references belong to one device and are not inherited"


def test_a_variant_matches_what_the_other_does_and_says_what_differs() -> None:
    small, board = load_profile("rpi5-2gb"), load_profile("rpi5-8gb")
    assert small.match == msgspec.structs.replace(board.match, memory_mb=(1700, 2300))
    assert small.cpu == board.cpu
    assert small.memory.bandwidth_gb_s == board.memory.bandwidth_gb_s
    assert (small.references, small.title) == ((), "Raspberry Pi 5 or Compute Module 5, 2 GB")
    assert small.memory.model_budget_mb < board.memory.model_budget_mb


def test_a_row_that_a_newer_version_adds_is_passed_over_each_time_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        'inherits = "rpi5-8gb"\nformat = "fieldlm.profile/1.9"\nid = "mine"\ntitle = "Mine"\n'
        'must_understand = ["references.mood"]\n'
        '[[references]]\nmodel = "m"\nsource = "s"\nmood = "good"\n'
    )
    for _ in range(2):
        with pytest.raises(ProfileError, match=r"references\.mood"):
            load_profile(str(path))


def test_unknown_takes_an_inherited_number_away() -> None:
    agx = load_profile("jetson-agx-orin")
    assert agx.memory.bandwidth_gb_s is None
    assert "memory.bandwidth_gb_s" not in agx.sources


def test_an_unknown_profile_is_answered_with_the_near_names() -> None:
    with pytest.raises(ProfileError, match=r"'rpi5'; did you mean rpi5-1gb, .* or rpi5-16gb.*fieldlm profiles"):
        load_profile("rpi5")


@pytest.mark.parametrize("name", ["../etc/passwd", "", "a b", "rpi5-8gb/"])
def test_a_name_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ProfileError, match="there is no profile"):
        load_profile(name)


def test_the_digest_follows_what_is_said_and_not_the_layout(tmp_path: Path) -> None:
    text = (profile_folder() / "generic-x86-64-avx2.toml").read_text()
    same, other = tmp_path / "a/generic-x86-64-avx2.toml", tmp_path / "b/generic-x86-64-avx2.toml"
    for path, content in ((same, f"# a comment\n{text}"), (other, text.replace("value = 2500", "value = 2501"))):
        path.parent.mkdir()
        path.write_text(content)
    original = profile_sha256(load_profile("generic-x86-64-avx2"))
    assert profile_sha256(load_profile(str(same))) == original
    assert profile_sha256(load_profile(str(other))) != original


BROKEN = {
    "an unknown field": ("[onnx]", "[onnx]\nblocks = 3", "unknown field"),
    "a number that is text": ('value = 2, kind = "policy"', 'value = "two", kind = "policy"', "cpu.decode_threads"),
    "a kind nobody knows": ('kind = "measured"', 'kind = "guessed"', "guessed"),
    "no TOML at all": ("[match]", "[match", "cannot be read"),
    "a later format": ("fieldlm.profile/1", "fieldlm.profile/2", "update fieldlm"),
    "another one's name": ('id = "generic-x86-64-avx2"', 'id = "rpi5-8gb"', "rename the file to rpi5-8gb.toml"),
    "a parent that is not there": ("generic = true", 'inherits = "rpi6"', "there is no profile 'rpi6'"),
    "itself as parent": ("generic = true", 'inherits = "generic-x86-64-avx2"', "inherits itself"),
    "two parents": ("generic = true", 'inherits = "rpi5-8gb"\nvariant_of = "rpi5-8gb"', "want one of the two"),
    "sources without numbers": ("[match]", "[sources]\n[match]", "beside their numbers"),
}


@pytest.mark.parametrize(("old", "new", "reason"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_file_is_refused_with_the_reason(tmp_path: Path, old: str, new: str, reason: str) -> None:
    path = tmp_path / "generic-x86-64-avx2.toml"
    text = (profile_folder() / path.name).read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(ProfileError, match=re.escape(reason)):
        load_profile(str(path))


def changed(profile: Profile, section: str, **values: Any) -> Profile:
    return msgspec.structs.replace(profile, **{section: msgspec.structs.replace(getattr(profile, section), **values)})


IMPOSSIBLE: dict[str, tuple[str, str, dict[str, Any], str]] = {
    "a budget above the memory": ("rpi5-8gb", "memory", {"model_budget_mb": 8000}, "total 8589 − reserve 1500 = 7089"),
    "more threads than cores": ("rpi5-8gb", "cpu", {"prefill_threads": 8}, "more than the 4 cores"),
    "decoding on little cores": ("rk3588", "cpu", {"decode_threads": 8}, "more than the 4 big cores"),
    "more big cores than cores": ("rk3588", "cpu", {"big_cores": 9}, "big_cores = 9 is more than the 8 cores"),
    "AVX2 on ARM": ("rpi5-8gb", "cpu", {"isa": ("neon", "dotprod", "avx2")}, "avx2 does not exist on aarch64"),
    "a match on what the CPU lacks": ("generic-aarch64-dotprod", "cpu", {"isa": ("neon",)}, "match.isa asks for"),
    "a file type nobody writes": ("rpi5-8gb", "gguf", {"quants": ("Q8_0", "Q9_9")}, "'Q9_9', which the pinned"),
    "no file type": ("rpi5-8gb", "gguf", {"quants": ()}, "gguf.quants is empty"),
    "a default outside the list": ("rpi5-8gb", "gguf", {"default_quant": "F16"}, "not among gguf.quants"),
    "an unknown KV type": ("rpi5-8gb", "gguf", {"kv_k": "q3_k"}, "gguf.kv_k = 'q3_k'"),
    "quantised values without flash attention": ("rpi5-8gb", "gguf", {"kv_v": "q8_0"}, "needs flash_attention"),
    "a KV pair CUDA lacks": ("jetson-orin-nano-8gb", "gguf", {"kv_k": "q8_0"}, "the pair q8_0-f16"),
    "a context that eats the budget": ("pi-zero-2w", "gguf", {"context": 8192}, "more than half of the budget"),
    "an ONNX block of 48": ("rpi5-8gb", "onnx", {"block_size": 48}, "onnx.block_size = 48"),
    "an ONNX accuracy of 7": ("rpi5-8gb", "onnx", {"accuracy_level": 7}, "onnx.accuracy_level = 7"),
    "idling hotter than working": ("rk3588", "power", {"idle_w": 20.0}, "not below power.load_w"),
    "watts of nothing": ("rpi5-8gb", "power", {"domain": ""}, "say not where they were measured"),
    "a chip that throttles when boiling": ("rpi5-8gb", "thermal", {"throttle_c": 300.0}, "want 40 to 120"),
    "reading faster than the data sheet": ("rpi5-8gb", "memory", {"read_gb_s": 30.0}, "more than the theory allows"),
    "a negative reserve": ("rpi5-8gb", "memory", {"reserve_mb": -1}, "memory.reserve_mb = -1"),
    "an expectation upside down": ("rpi5-8gb", "expect", {"bandwidth_percent_low": 110.0}, "is not below"),
    "a range that is empty": ("rpi5-8gb", "match", {"memory_mb": (9000, 8000)}, "is empty"),
    "references faster than the memory": ("rpi5-8gb", "memory", {"bandwidth_gb_s": 5.0}, "need more than 5 GB/s"),
    "shared memory that is not shared": ("jetson-orin-nano-8gb", "memory", {"unified": False}, "must be true"),
    "a budget above the GPU's memory": ("laptop-nvidia", "memory", {"model_budget_mb": 9000}, "is more than GeForce"),
}


@pytest.mark.parametrize(("name", "section", "values", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE.keys())
def test_an_impossible_profile_is_refused_for_its_reason(
    name: str, section: str, values: dict[str, Any], reason: str
) -> None:
    reasons = lint(changed(load_profile(name), section, **values))
    assert [line for line in reasons if reason in line], reasons


def test_a_gpu_that_would_stand_idle_is_refused() -> None:
    (reason,) = lint(msgspec.structs.replace(load_profile("laptop-nvidia"), engines=("llama", "onnx")))
    assert "would stand idle: the ONNX engine computes on the CPU" in reason


def test_a_number_without_a_source_is_refused() -> None:
    profile = load_profile("rpi5-8gb")
    kept = {name: said for name, said in profile.sources.items() if name != "memory.bandwidth_gb_s"}
    (reason,) = lint(msgspec.structs.replace(profile, sources=kept))
    assert reason.startswith("memory.bandwidth_gb_s = 17 has no kind and no source")


def test_a_theory_without_a_source_is_refused() -> None:
    profile = load_profile("rpi5-8gb")
    silent = msgspec.structs.replace(profile.sources["memory.bandwidth_gb_s"], source=" ")
    sources = {**profile.sources, "memory.bandwidth_gb_s": silent}
    (reason,) = lint(msgspec.structs.replace(profile, sources=sources))
    assert "is called theory and names no source" in reason


def test_slow_file_types_are_a_caution_and_no_refusal() -> None:
    assert any(line.startswith("Q8_0 has no repacked kernel") for line in cautions(load_profile("laptop-avx2")))
    assert cautions(load_profile("rpi5-8gb")) == []


def test_weights_that_are_mapped_and_repacked_are_a_caution() -> None:
    mapped = cautions(changed(load_profile("rpi5-8gb"), "runtime", mmap=True))
    assert any(line.startswith("runtime.mmap = true keeps Q4_0 in memory twice") for line in mapped)
    assert not any("in memory twice" in line for line in cautions(load_profile("pi-zero-2w"))), "nothing is repacked"


def test_the_yardstick_cache_is_the_published_one() -> None:
    # SmolLM-360M: 40,960 bytes a token at F16.
    zero = load_profile("pi-zero-2w")
    assert kv_mb(zero) == pytest.approx(1024 * 40_960 / 1e6)


def test_a_file_of_an_older_version_is_read_without_what_nothing_ever_used(tmp_path: Path) -> None:
    older = (
        'inherits = "rpi5-8gb"\nformat = "fieldlm.profile/1"\nid = "mine"\ntitle = "Mine"\n'
        '[cpu]\nclock_ghz = { value = 2.4, kind = "theory", source = "a sheet" }\nggml_variant = "armv8.2_2"\n'
        'prefill_threads = { value = 3, kind = "policy", source = "one is for the robot" }\n'
        '[power]\nsensor = "rpi_pmic"\n[storage]\nmedium = "microsd"\n'
        'read_mb_s = { value = 85, kind = "measured", source = "somebody" }\n[gguf]\nimatrix = "off"\n'
        '[onnx]\nbits = { value = 4, kind = "policy", source = "us" }\nquantized_head = false\n'
    )
    path = tmp_path / "mine.toml"
    path.write_text(older)
    read = load_profile(str(path))
    parent = load_profile("rpi5-8gb")
    assert read.cpu == msgspec.structs.replace(parent.cpu, prefill_threads=3)
    assert (read.power, read.gguf, read.onnx) == (parent.power, parent.gguf, parent.onnx)
    assert not [name for name in read.sources if name.rpartition(".")[2] in ("clock_ghz", "read_mb_s", "bits")]
    path.write_text(older + "[disk]\nspeed = 1\n")
    with pytest.raises(ProfileError, match="disk"):
        load_profile(str(path))


FACTS = {
    "cpu.name", "cpu.big_cores", "memory.unified", "memory.bandwidth_gb_s",
    "power.domain", "power.idle_w", "power.load_w",
}  # fmt: skip
"""What people read (`fieldlm profiles NAME`) and the lint holds against the rest."""


def test_everything_a_profile_says_is_read_by_something() -> None:
    root = Path(__file__).parents[2]
    halves = [*(root / "runtime/fieldlm").rglob("*.py"), *(root / "compiler/fieldlm_compiler").rglob("*.py")]
    code = "\n".join(path.read_text() for path in halves if path.name not in ("profile.py", "profile_lint.py"))
    profile = load_profile("rpi5-8gb")
    sections = ("cpu", "memory", "power", "thermal", "gguf", "onnx", "runtime", "expect")
    fields = {f"{section}.{name}" for section in sections for name in getattr(profile, section).__struct_fields__}
    assert {name for name in fields if not re.search(rf"\b{re.escape(name)}\b", code)} == FACTS
    assert re.search(r"\bprofile\.engines\b", code)


def test_the_profile_that_the_page_about_gpus_shows_is_possible(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs/gpu.md").read_text()
    (text,) = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "my-desktop.toml"
    path.write_text(text)
    profile = load_profile(str(path))
    assert lint(profile) == []
    assert (profile.match.names_machine, profile.bandwidth_gb_s) == (False, None)
