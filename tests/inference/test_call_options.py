"""The model as an object: opened by a file, asked with keyword arguments, what is wrong named in one line."""

import asyncio
import math
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, get_type_hints

import pytest

from fieldlm import AsyncModel, Model
from fieldlm.core.errors import EngineError, InputError
from fieldlm.engines import Sampling, Schedule, memory_plan
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.call_options import OpenOptions, SamplingOptions

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def model(smollm2_gguf: Path) -> Iterator[Model]:
    with Model.open(smollm2_gguf, threads=1, context=512, parallel=1) as opened:
        yield opened


@dataclass
class Colour:
    name: str


def test_the_options_are_the_fields_of_a_sampling_with_their_types() -> None:
    fields = get_type_hints(Sampling)
    # What calls in a model's own spelling, and thoughts, need; nobody asks for it by hand.
    del fields["said"], fields["preamble"]
    assert get_type_hints(SamplingOptions) == fields
    hints = get_type_hints(Model.open)
    assert get_type_hints(OpenOptions) == {name: hints[name] for name in hints if name not in ("source", "return")}


def test_without_a_wish_the_context_is_what_memory_allows(
    smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch, logged: pytest.LogCaptureFixture
) -> None:
    def free_mb(root: Path) -> int:
        return FREE_MB

    monkeypatch.setattr(memory_plan, "memory_available_mb", free_mb)
    with Model.open(smollm2_gguf, threads=1, parallel=1) as opened:
        context = opened.engine.context
        assert 1024 <= context < 4096
        assert context % 256 == 0
    assert f"gets {context} tokens of context: memory has no room for more" in logged.text
    with pytest.raises(EngineError, match=f"{FREE_MB} MB are free; --context {context} would fit"):
        Model.open(smollm2_gguf, threads=1, parallel=1, context=4096)


def test_an_option_by_its_name_is_one_in_a_sampling(model: Model) -> None:
    answer = model.chat("Hello", max_tokens=5)
    assert answer.tokens == model.chat("Hello", Sampling(max_tokens=5)).tokens
    assert len(answer.tokens) == 5
    assert model.chat("Hello", Sampling(max_tokens=40), max_tokens=2).timings.completion_tokens == 2
    assert "".join(chunk.text for chunk in model.stream("Hello", max_tokens=5)) == answer.text
    assert isinstance(model.call(Colour, "A colour?", max_tokens=64, temperature=0.0, fallback=Colour("red")), Colour)


def test_asyncio_has_the_same(smollm2_gguf: Path, model: Model) -> None:
    async def ask() -> tuple[str, str, str]:
        async with await AsyncModel.open(smollm2_gguf, threads=1, context=512, parallel=1) as opened:
            said = "".join([chunk.text async for chunk in opened.stream("Hello", max_tokens=5)])
            return repr(opened), (await opened.chat("Hello", max_tokens=5)).text, said

    shown, text, said = asyncio.run(ask())
    assert text == said == model.chat("Hello", max_tokens=5).text
    assert shown == f"<Async{repr(model).removeprefix('<')}"


def test_its_repr_says_what_it_is(model: Model, base_bundle: Bundle) -> None:
    name, generation = model.bundle.manifest.model.name, model.bundle.generation
    assert repr(model) == f"<Model {name} Q4_1, 98 MB, context 512, generation {generation}, unproved>"
    with Model.open(base_bundle, threads=1, context=512, parallel=1) as proved:
        assert repr(proved).endswith(f"generation {base_bundle.generation}>")


FREE_MB = 180
TWO: Any = "2"
MISSPELT: Any = {"max_token": 3}


@pytest.mark.parametrize(
    ("messages", "options", "problem"),
    [
        ("hi", MISSPELT, "there is no option 'max_token', did you mean 'max_tokens'?"),
        ("hi", {"sampling": 64}, "sampling is 64, want a Sampling, or its fields by name, such as max_tokens=64"),
        ("hi", {"max_tokens": "many"}, "max_tokens is 'many', want a whole number"),
        ("hi", {"temperature": "hot"}, "temperature is 'hot', want a number"),
        ("hi", {"top_p": 5}, "top_p is 5, want a number"),
        ("hi", {"stop": "END"}, "stop is 'END', want a tuple of texts"),
        ("hi", {"terms": 2.0}, "terms is 2.0, want a Schedule"),
        ("hi", {"terms": Schedule(deadline_s=-1.0)}, "deadline_s is -1.0, want seconds from now on, 0 or more"),
        ("hi", {"terms": Schedule(max_queue_s=-0.5)}, "max_queue_s is -0.5, want seconds"),
        ("hi", {"terms": Schedule(deadline_s=math.nan)}, "deadline_s is nan, want seconds"),
        ("hi", {"terms": Schedule(deadline_s=TWO)}, "deadline_s is '2', want seconds"),
        ("hi", {"deadline_s": 2.0}, r"no option 'deadline_s'; it is part of when: terms=Schedule\(deadline_s=2.0\)"),
        ("hi", {"timeout": 2.0}, r"terms=Schedule\(deadline_s=2.0\)"),
        ("hi", {"priority": "safety"}, r'terms=Schedule\(priority="safety"\)'),
        (5, {}, r"messages is '5' \(int\), want a text"),
        (b"hi", {}, r"\(bytes\), want a text"),
        ([], {}, r"messages is '\[\]' \(list\), want a text, or a list"),
        (["hi"], {}, r"messages is .* \(list\), want a text, or a list"),
        ({"role": "user", "content": "hi"}, {}, r"\(dict\), want a text, or a list"),
    ],
)
def test_a_wrong_argument_is_named_with_what_is_wanted(
    model: Model, messages: Any, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        cast(Any, model).chat(messages, **options)
    assert "\n" not in str(caught.value)


def test_each_way_of_asking_knows_a_wrong_option(model: Model) -> None:
    for ask in (lambda: next(model.stream("hi", **MISSPELT)), lambda: model.call(Colour, "hi", **MISSPELT)):
        with pytest.raises(InputError, match="there is no option 'max_token'"):
            ask()


@pytest.mark.parametrize(
    ("source", "options", "problem"),
    [
        (5, {}, "a model is named by a text, a Path or a Bundle, not by 5"),
        ("smollm", {}, "there is no model 'smollm', did you mean 'smollm2'?"),
        ("missing.gguf", {}, r"there is no file .*missing\.gguf"),
        (None, {"threads": "2"}, "threads is '2', want a whole number"),
        (None, {"profile": "rpi5-8gb"}, "profile is 'rpi5-8gb', want a Profile"),
    ],
)
def test_what_cannot_be_opened_is_one_line(
    smollm2_gguf: Path, source: Any, options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        Model.open(cast(Any, smollm2_gguf if source is None else source), **options)
    assert "\n" not in str(caught.value)


def test_a_type_checker_knows_the_options(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "from fieldlm import AsyncModel, Model\n"
        "model = Model.open('x.gguf', threads=2)\n"
        "model.chat('hi', max_tokens=64, temperature=0.7)\n"
        "model.chat('hi', max_tokens='many')\n"
        "model.chat('hi', max_token=64)\n"
        "async def ask() -> None:\n"
        "    await AsyncModel.open('x.gguf', treads=2)\n"
        "    other = await AsyncModel.open('x.gguf', threads=2)\n"
        "    await other.chat('hi', temperature='hot')\n"
    )
    (tmp_path / "pyrightconfig.json").write_text(
        f'{{"extraPaths": ["{ROOT / "runtime"}"], "typeCheckingMode": "strict"}}'
    )
    pyright = [Path(sys.executable).with_name("pyright"), "--pythonpath", sys.executable, "-p", tmp_path]
    done = subprocess.run(pyright, capture_output=True, text=True, check=False)
    wrong = [
        line.partition("script.py:")[2].partition(":")[0] for line in done.stdout.splitlines() if " error: " in line
    ]
    assert wrong == ["4", "5", "7", "9"], done.stdout
