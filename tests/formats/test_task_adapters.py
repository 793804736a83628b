"""Adapters and their tasks in a manifest: read, and refused in one line where a device could not go by them."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fieldlm.core.errors import BundleError
from fieldlm.core.files import canonical_json
from fieldlm.formats.bundle import parse_manifest
from fieldlm.formats.task_adapters import MOST, task_map

DIGEST = "0" * 64
FILES = {
    "model.gguf": "base", "all.gguf": "adapter", "tea.gguf": "adapter", "router.npz": "router",
    "sure.json": "confidence",
}  # fmt: skip
Change = Callable[[dict[str, Any]], object]


def manifest() -> dict[str, Any]:
    return {
        "format": "fieldlm.bundle/1",
        "engine": "llama",
        "model": {
            "name": "m", "source": "m", "licence": "mit", "architecture": "llama", "parameters": 1, "context": 8,
            "source_sha256": DIGEST,
        },
        "profile": "p",
        "profile_sha256": DIGEST,
        "recipe": {"quant": "Q8_0", "bits_per_weight": 8.5},
        "files": [{"path": path, "role": role, "size": 1, "sha256": DIGEST} for path, role in FILES.items()],
        "must_understand": ["adapters"],
        "adapters": [
            {"name": "all", "path": "all.gguf"},
            {"name": "tea", "path": "tea.gguf", "tasks": ["t1", "t2"], "confidence": "sure.json"},
        ],
    }  # fmt: skip


def read(document: dict[str, Any]) -> Any:
    return parse_manifest(json.dumps(document).encode(), what="it")


def without(role: str) -> Change:
    return lambda d: d.update(files=[file for file in d["files"] if file["role"] != role])


def test_a_manifest_says_which_adapter_answers_which_task_and_keeps_its_bytes() -> None:
    found = read(manifest())
    assert [(each.name, each.path, each.confidence) for each in found.task_adapters] == [
        ("all", "all.gguf", None), ("tea", "tea.gguf", "sure.json"),
    ]  # fmt: skip
    assert task_map(found.task_adapters) == {"t1": "tea", "t2": "tea"}
    assert parse_manifest(canonical_json(found), what="it") == found


def test_one_without_several_adapters_says_nothing_of_them() -> None:
    document = manifest()
    del document["adapters"], document["must_understand"]
    found = read(document)
    assert found.task_adapters == ()
    assert b"adapters" not in canonical_json(found)


WRONG: dict[str, tuple[Change, str]] = {
    "none": (lambda d: d.update(adapters=[]), "there are 0, want 2 to 64"),
    "one": (lambda d: d["adapters"].pop(), "there are 1, want 2"),
    "too many": (lambda d: d["adapters"].extend(d["adapters"][:1] * MOST), f"there are {MOST + 2}"),
    "nothing that must be understood": (lambda d: d.update(must_understand=[]), "an older version would pass them by"),
    "no router": (without("router"), "no router"),
    "a name that none can be called": (lambda d: d["adapters"][1].update(name="a b"), "'a b' is no name"),
    "a path out of the folder": (lambda d: d["adapters"][1].update(path="../x"), "none of its adapters"),
    "another file": (lambda d: d["adapters"][1].update(path="router.npz"), "none of its adapters"),
    "no such calibration": (lambda d: d["adapters"][1].update(confidence="all.gguf"), "none of its files"),
    "for no task": (lambda d: d["adapters"][1].update(tasks=[]), "'tea' is for no task"),
    "a name twice": (lambda d: d["adapters"][1].update(name="all"), "the adapter 'all' is there twice"),
    "a file twice": (lambda d: d["adapters"][1].update(path="all.gguf"), "the file 'all.gguf' is there twice"),
    "a task twice": (lambda d: d["adapters"][0].update(tasks=["t2"]), "the task 't2' is there twice"),
    "another one first": (lambda d: d["adapters"].append(d["adapters"].pop(0) | {"tasks": ["t9"]}), "the first one"),
    "a file of nobody": (
        lambda d: d["files"].append({"path": "x.gguf", "role": "adapter", "size": 1, "sha256": DIGEST}),
        "none of them has the file 'x.gguf'",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_device_could_not_go_by_is_refused_in_one_line(name: str) -> None:
    change, why = WRONG[name]
    document = manifest()
    change(document)
    with pytest.raises(BundleError) as refused:
        read(document)
    (line,) = str(refused.value).splitlines()
    assert line.startswith("it names adapters of tasks, but ")
    assert why in line
    assert line.endswith("; compile the bundle again")


@pytest.mark.parametrize("given", [None, "all", {"all": "all.gguf"}, [{"name": "all"}], [{"name": 1, "path": "a"}]])
def test_what_is_no_list_of_adapters_is_refused(given: object) -> None:
    with pytest.raises(BundleError, match=r"is not a bundle manifest.*adapters"):
        read(manifest() | {"adapters": given})
