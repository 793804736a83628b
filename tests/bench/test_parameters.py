"""A bench takes llama-bench's letters, lists and ranges, and writes its 44 fields in its five formats."""

import csv
import io
import json
import sqlite3
from argparse import ArgumentTypeError
from typing import Any

import msgspec
import pytest

from fieldlm.bench.formats import FORMATS, name_of_test, writer
from fieldlm.bench.llama_bench import FIELDS, SAMPLES
from fieldlm.bench.measure import Spec
from fieldlm.bench.parameters import Sweep, name_of, specs, whole_numbers, words
from fieldlm.core.errors import InputError
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import load_profile

# tools/llama-bench/llama-bench.cpp, get_fields and get_field_type, and the two lists of its JSON.
LLAMA_BENCH = """
build_commit TEXT, build_number INTEGER, cpu_info TEXT, gpu_info TEXT, backends TEXT, model_filename TEXT,
model_type TEXT, model_size INTEGER, model_n_params INTEGER, n_batch INTEGER, n_ubatch INTEGER, n_threads INTEGER,
cpu_mask TEXT, cpu_strict INTEGER, poll INTEGER, type_k TEXT, type_v TEXT, n_gpu_layers INTEGER, n_cpu_moe INTEGER,
split_mode TEXT, main_gpu INTEGER, no_kv_offload INTEGER, flash_attn INTEGER, devices TEXT, tensor_split TEXT,
tensor_buft_overrides TEXT, load_mode TEXT, lazy_mode TEXT, embeddings INTEGER, no_op_offload INTEGER, no_host INTEGER,
repack INTEGER, fit_target INTEGER, fit_min_ctx INTEGER, n_prompt INTEGER, n_gen INTEGER, n_depth INTEGER,
test_time TEXT, avg_ns INTEGER, stddev_ns INTEGER, avg_ts REAL, stddev_ts REAL
"""
# scripts/compare-llama-bench.py refuses a result without these.
COMPARED = (
    "cpu_info", "gpu_info", "backends", "n_gpu_layers", "n_cpu_moe", "tensor_buft_overrides", "model_filename",
    "model_type", "n_batch", "n_ubatch", "embeddings", "cpu_mask", "cpu_strict", "poll", "n_threads", "type_k",
    "type_v", "load_mode", "no_kv_offload", "split_mode", "main_gpu", "tensor_split", "flash_attn", "n_prompt",
    "n_gen", "n_depth", "fit_target", "fit_min_ctx", "build_commit", "test_time", "avg_ts",
)  # fmt: skip
PROFILE = load_profile("generic-x86-64")
BASE = Spec(
    bundle="b", prompt_tokens=0, gen_tokens=0, repetitions=1, threads=4, prefill_threads=8, seed=1, profile=PROFILE
)
ROW: dict[str, Any] = {
    **{name: kind() for name, kind in FIELDS.items()},
    "build_commit": "llama-cpp-python-0.3.36", "cpu_info": 'An "ARM", O\'Neill', "backends": "CPU",
    "model_type": "llama 135M Q4_1", "model_size": 92_000_000, "model_n_params": 134_500_000, "n_batch": 256,
    "n_ubatch": 256, "n_threads": 4, "type_k": "f16", "type_v": "f16", "flash_attn": -1, "load_mode": "none",
    "repack": True, "n_prompt": 512, "avg_ts": 123.456, "stddev_ts": 1.5, "samples_ns": [1, 2],
    "samples_ts": [3.0, 4.0], "fieldlm": {"remarks": []},
}  # fmt: skip


def printed(name: str, *rows: dict[str, Any], asked: frozenset[str] = frozenset()) -> str:
    out = io.StringIO()
    made = writer(name, asked, out)
    for row in rows:
        made.rows([row])
    made.end()
    return out.getvalue()


def test_the_fields_are_llama_benchs_by_name_order_and_type() -> None:
    kinds = {str: "TEXT", bool: "INTEGER", int: "INTEGER", float: "REAL"}
    assert [f"{name} {kinds[kind]}" for name, kind in FIELDS.items()] == LLAMA_BENCH.replace("\n", " ").strip().split(
        ", "
    )
    assert len(FIELDS) + len(SAMPLES) == 44
    assert {name for name, kind in FIELDS.items() if kind is bool} == {
        "no_kv_offload", "cpu_strict", "embeddings", "no_host", "repack",
    }  # fmt: skip
    assert set(COMPARED) <= FIELDS.keys()


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("512", (512,)), ("0", (0,)), ("128,512", (128, 512)), ("1-4", (1, 2, 3, 4)), ("0-4096+2048", (0, 2048, 4096)),
        ("16-100*2", (16, 32, 64)), ("1-2,8", (1, 2, 8)), ("7-7", (7,)),
    ],
)  # fmt: skip
def test_lists_and_ranges_are_read_as_llama_bench_reads_them(text: str, values: tuple[int, ...]) -> None:
    assert whole_numbers(0, 4096)(text) == values


@pytest.mark.parametrize(
    "text", ["", "x", "4-1", "1,", "1-9+0", "0-8*2", "5-9*1", "9999", "-1", "1--2", "1-4-8", "0-4096", "1.5", "٣"]
)
def test_a_list_that_is_none_is_refused_with_what_is_wanted(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="want a list of whole numbers"):
        whole_numbers(0, 4096)(text)


def test_a_list_of_words_knows_them() -> None:
    assert words("f16", "q8_0")("f16,q8_0") == ("f16", "q8_0")
    with pytest.raises(ArgumentTypeError, match="want a list out of f16, q8_0"):
        words("f16", "q8_0")("f16,")


def test_every_combination_is_measured_and_what_is_not_said_is_as_it_is_served(base_bundle: Bundle) -> None:
    plain = specs(base_bundle, Sweep(prompt=(512,), gen=(128,)), BASE)
    assert plain == [msgspec.structs.replace(BASE, prompt_tokens=512, gen_tokens=128)]
    sweep = Sweep(
        prompt=(64, 128), gen=(16,), depth=(0, 32), threads=(1, 2), key_type=("q8_0",), flash_attention=("on",)
    )
    found = specs(base_bundle, sweep, BASE)
    assert len(found) == 2 * 2 * 2
    assert not any(each.is_combined for each in found)
    (*_, both) = specs(base_bundle, Sweep(prompt=(0,), gen=(0,), pairs=((64, 16),)), BASE)
    assert (both.prompt_tokens, both.gen_tokens, both.is_combined) == (64, 16, True)
    assert [(each.prompt_tokens, each.gen_tokens) for each in found[:2]] == [(64, 16), (128, 0)]
    assert {(each.threads, each.prefill_threads) for each in found} == {(1, 1), (2, 2)}
    assert {each.depth for each in found} == {0, 32}
    held = found[0].profile
    assert held is not None
    assert (held.gguf.kv_k, held.gguf.flash_attention, held.runtime.mmap) == ("q8_0", True, PROFILE.runtime.mmap)


@pytest.mark.parametrize(
    ("batch", "ubatch", "ran"),
    [((), (), (None, None)), ((64,), (), (64, None)), ((), (512,), (512, 512)), ((), (32,), (256, 32))],
)
def test_a_step_is_at_least_as_large_as_its_microbatch(
    batch: tuple[int, ...], ubatch: tuple[int, ...], ran: tuple[int | None, int | None], base_bundle: Bundle
) -> None:
    (found,) = specs(base_bundle, Sweep(prompt=(8,), gen=(8,), batch=batch, ubatch=ubatch), BASE)
    assert (found.batch, found.ubatch) == ran


@pytest.mark.parametrize(
    ("sweep", "words"),
    [
        (Sweep(prompt=tuple(range(1, 500)), gen=(1,), threads=(1, 2, 3)), "1,497 combinations"),
    ],
)
def test_what_cannot_be_measured_is_refused(sweep: Sweep, words: str, base_bundle: Bundle) -> None:
    with pytest.raises(InputError, match=words):
        specs(base_bundle, sweep, BASE)


def test_an_engine_that_leaves_no_choice_says_so(base_bundle: Bundle) -> None:
    onnx = msgspec.structs.replace(base_bundle.manifest, engine="onnx")
    bundle = msgspec.structs.replace(base_bundle, manifest=onnx)
    with pytest.raises(InputError, match="no choice of n_batch, type_k"):
        specs(bundle, Sweep(prompt=(8,), gen=(8,), batch=(8,), key_type=("f16",)), BASE)
    assert specs(bundle, Sweep(prompt=(8,), gen=(8,), depth=(4,)), BASE)


def test_the_table_is_llama_benchs() -> None:
    deep = ROW | {"n_prompt": 0, "n_gen": 64, "n_depth": 2048, "type_k": "q8_0"}
    voided = ROW | {"fieldlm": {"is_void": True}}
    assert " void |" in printed("md", voided).splitlines()[2]
    head, rule, first, second, empty, build = printed("md", ROW, deep, asked=frozenset({"type_k"})).splitlines()
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "model", "size", "params", "backend", "threads", "n_batch", "n_ubatch", "type_k", "lm", "test", "t/s",
    ]  # fmt: skip
    assert {len(line) for line in (head, rule, first, second)} == {len(head)}
    assert [cell.strip() for cell in first.split("|")[1:4]] == ["llama 135M Q4_1", "87.74 MiB", "134.50 M"]
    assert first.rstrip(" |").endswith("pp512 |        123.46 ± 1.50")
    assert "q8_0" in second
    assert "tg64 @ d2048" in second
    assert (empty, build) == ("", "build: llama-cpp-python-0.3.36 (0)")
    assert name_of_test(ROW | {"n_gen": 3}) == "pp512+tg3"


def test_sql_makes_the_table_and_holds_every_value() -> None:
    base = sqlite3.connect(":memory:")
    base.executescript(printed("sql", ROW, ROW))
    (row, again) = base.execute("SELECT * FROM llama_bench").fetchall()
    assert row == again
    assert dict(zip(FIELDS, row, strict=True)) == {name: ROW[name] for name in FIELDS}
    columns = base.execute("PRAGMA table_info(llama_bench)").fetchall()
    assert ", ".join(f"{name} {kind}" for _, name, kind, *_ in columns) == LLAMA_BENCH.replace("\n", " ").strip()
    base.close()


def test_csv_quotes_every_value() -> None:
    (row,) = csv.DictReader(io.StringIO(printed("csv", ROW)))
    assert list(row) == list(FIELDS)
    assert row["cpu_info"] == ROW["cpu_info"]
    assert (row["repack"], row["avg_ts"]) == ("1", "123.456000")


def test_json_and_jsonl_hold_the_rows_whole() -> None:
    assert json.loads(printed("json", ROW, ROW)) == [ROW, ROW]
    assert [json.loads(line) for line in printed("jsonl", ROW, ROW).splitlines()] == [ROW, ROW]
    assert list(json.loads(printed("jsonl", ROW)))[:44] == [*FIELDS, *SAMPLES]
    assert set(FORMATS) == {"md", "csv", "json", "jsonl", "sql"}


def test_each_of_a_grid_has_a_name_of_its_own(base_bundle: Bundle) -> None:
    base = Spec(bundle="", prompt_tokens=0, gen_tokens=0, repetitions=1, threads=4, seed=1)
    base = msgspec.structs.replace(base, profile=load_profile("generic-x86-64"))
    sweep = Sweep(
        prompt=(16, 32), gen=(8,), pairs=((5, 6),), depth=(0, 64), threads=(1, 2), key_type=("f16", "q8_0"),
        flash_attention=("on", "off"), load_mode=("none", "mmap"), ubatch=(16, 32),
    )  # fmt: skip
    found = specs(base_bundle, sweep, base)
    names = [name_of(spec) for spec in found]
    assert len(set(names)) == len(names) == 24 * 8
    assert "pp16, tg8 @ d64, 2 threads, q8_0/default, fa on, lm mmap, b 256, ub 16" in names
    assert "pp5+tg6, 1 thread, f16/default, fa off, lm none, b 256, ub 32" in names


def test_no_threads_are_those_of_the_profile(base_bundle: Bundle) -> None:
    base = Spec(bundle="", prompt_tokens=0, gen_tokens=0, repetitions=1, threads=4, prefill_threads=3, seed=1)
    (found,) = specs(base_bundle, Sweep(prompt=(16,), gen=(), threads=(0,)), base)
    assert (found.threads, found.prefill_threads) == (4, 3)
