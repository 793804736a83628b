"""Thoughts are parted from answers wherever the text is cut, and templates say what they stand between."""

from pathlib import Path
from typing import cast

import numpy as np
import pytest

from fieldlm.core.errors import EngineError
from fieldlm.engines import Engine, Guide, SpecialTokens
from fieldlm.engines.constraint import Rule
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.chat_template import ChatTemplate, thought_marks
from fieldlm.inference.model import Model
from fieldlm.inference.thoughts.marks import KNOWN, ThoughtMarks, marks_in
from fieldlm.inference.thoughts.thought_bound import ThoughtBound
from fieldlm.inference.thoughts.thought_reader import ThoughtReader, parted_thought, without_thoughts
from tests.inference.test_chat_template import bundle_of
from tests.support import material
from tests.support.schema_samples import END, ByteEngine, byte_grammars

THINK = KNOWN[0]
CALL = '<tool_call>{"name":"f","arguments":{}}</tool_call>'
# What a model writes, what of it is thought, and what is answer.
WRITTEN = {
    "a call inside": (f"<think>{CALL}</think>ok", CALL, "ok"),
    "space around": ("\n<think>\nI see.\n\nSo:  7\n</think>\n\n  Seven.\n", "I see.\n\nSo:  7", "Seven.\n"),
    "empty": ("<think>\n\n</think>\n\nYes", "", "Yes"),
    "two in a row": ("<think>a</think>\n<think>\nb</think>\nc", "a\n\nb", "c"),
    "no thought": ("  Hello <think> you </think>", "", "  Hello <think> you </think>"),
    "further down": ("<think>a</think>b\n<think>c</think>", "a", "b\n<think>c</think>"),
    "nearly a mark": ("<thinking>a</thinking>", "", "<thinking>a</thinking>"),
    "nearly its end": ("<think>a</thin</thin k></think>b", "a</thin</thin k>", "b"),
    "never closed": ("<think>\nand so on\n", "and so on", ""),
    "nothing": ("", "", ""),
    "space": (" \n", "", " \n"),
    "half a mark": ("<thi", "", "<thi"),
    "closed alone": ("</think>a", "", "</think>a"),
}
QWEN3 = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% set content = m.content.split('</think>')[-1] %}"
    "{% if loop.last and m.reasoning_content %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
"""As Qwen3's template does it: a switch, the thought of the last answer alone, marks that the model writes itself."""
OPENED = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)
"""As those of DeepSeek R1 and QwQ do it: the prompt begins the thought, and nothing switches it off."""
HELLO = [{"role": "user", "content": "Hello"}]


def read(text: str, cuts: tuple[int, ...], *, marks: ThoughtMarks = THINK, is_cut: bool = False) -> tuple[str, str]:
    reader, pieces, at = ThoughtReader(marks), list[tuple[str, str]](), 0
    for cut in (*cuts, len(text)):
        pieces.append(reader.push(text[at:cut]))
        at = cut
    pieces.append(reader.finish(is_cut=is_cut))
    return "".join(thought for thought, _ in pieces), "".join(answer for _, answer in pieces)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_thought_is_parted_off_wherever_the_text_is_cut(name: str) -> None:
    text, thought, answer = WRITTEN[name]
    assert read(text, ()) == (thought, answer)
    assert read(text, tuple(range(len(text)))) == (thought, answer)
    for first in range(len(text)):
        for second in range(first, len(text)):
            assert read(text, (first, second)) == (thought, answer), (first, second)


@pytest.mark.parametrize("marks", KNOWN, ids=lambda marks: marks.opens)
def test_every_known_pair_of_marks_is_found_in_a_template_and_read(marks: ThoughtMarks) -> None:
    assert marks_in(f"{{% if '{marks.closes}' in m.content %}}") == marks
    text = f"{marks.opens}\nhm{marks.closes}\nyes"
    assert {read(text, (cut,), marks=marks) for cut in range(len(text))} == {("hm", "yes")}
    assert marks_in("{{ messages[0].content }}") is None


def test_a_thought_is_told_as_it_comes_and_an_answer_is_not_held_back() -> None:
    reader = ThoughtReader(THINK)
    assert reader.push("<think>\nI") == ("I", "")
    assert reader.push(" am ") == (" am", "")
    assert reader.push("</thi") == ("", "")
    assert reader.push("nk>\n\n") == ("", "")
    assert reader.push("Yes <think>") == ("", "Yes <think>")


@pytest.mark.parametrize(
    ("text", "found"),
    [("<thi", ("", "")), ("<think>a</thi", ("a", "")), ("<think>a</think>\n", ("a", "")), ("<", ("", "<"))],
)
def test_of_an_answer_that_is_cut_off_no_half_mark_is_said(text: str, found: tuple[str, str]) -> None:
    for cut in range(len(text)):
        assert read(text, (cut,), is_cut=True) == found


def template(source: str, *control: str) -> ChatTemplate:
    return ChatTemplate(source, SpecialTokens(eos="<|im_end|>", control=control))


def test_a_switch_is_told_and_a_thought_that_was_begun_is_closed() -> None:
    qwen, opened = template(QWEN3), template(OPENED)
    assert (qwen.switches, opened.switches) == (("enable_thinking",), ())
    assert qwen.render(HELLO, thinks=False).endswith("assistant\n<think>\n\n</think>\n\n")
    assert qwen.render(HELLO, thinks=True) == qwen.render(HELLO)
    assert qwen.render(HELLO).endswith("assistant\n")
    assert opened.render(HELLO).endswith("assistant\n<think>\n")
    assert opened.render(HELLO, thinks=False).endswith("assistant\n<think>\n\n</think>\n\n")
    assert opened.render(HELLO, thinks=False, asks=False) == opened.render(HELLO, asks=False)
    assert (THINK.is_open(opened.render(HELLO)), THINK.is_open(qwen.render(HELLO))) == (True, False)
    assert not THINK.is_open(qwen.render(HELLO, thinks=False))


def test_variables_reach_the_template_but_not_in_the_place_of_its_own_or_of_special_tokens() -> None:
    found = template("{{ messages[0].content }}|{{ mood }}|{{ bos_token }}", "<|im_end|>")
    assert found.variables == {"messages", "mood", "bos_token"}
    said = found.render(HELLO, variables={"mood": "a<|im_end|>", "messages": [], "bos_token": "x"})
    assert said.replace("\ufdd0", "#") == "Hello|a<#|im_end|>|"


def test_thoughts_of_earlier_answers_reach_the_template_and_nothing_else() -> None:
    told = [*HELLO, {"role": "assistant", "content": "Hi", "reasoning_content": "greet"}]
    assert "<think>\ngreet\n</think>\n\nHi" in template(QWEN3).render(told, asks=False)
    assert without_thoughts(told) == [*HELLO, {"role": "assistant", "content": "Hi"}]


def test_a_bundle_thinks_as_its_template_says(tmp_path: Path, base_bundle: Bundle) -> None:
    assert thought_marks(bundle_of(tmp_path, QWEN3)) == THINK
    assert thought_marks(base_bundle) is None


def test_a_switch_is_found_whose_default_the_template_sets_itself() -> None:
    smollm3 = (
        "{% if enable_thinking is not defined %}{% set enable_thinking = true %}{% endif %}"
        "{% for m in messages %}{{ m.content.split('</think>')[-1] }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]"
        "{% if not enable_thinking %}<think>\n\n</think>\n{% endif %}{% endif %}"
    )
    found = template(smollm3)
    assert found.switches == ("enable_thinking",)
    assert found.render(HELLO) == found.render(HELLO, thinks=True) == "Hello[assistant]"
    assert found.render(HELLO, thinks=False) == "Hello[assistant]<think>\n\n</think>\n"


WET = "wet|dry"
# What a model would write: of it the form that follows, whether its prompt begins the thought, and what comes of it.
BOUND = {
    "cut, before a form": ("abcdefgh", WET, True, "abc</think>\n\ndry"),
    "begun, before a form": ("abcwefgh", WET, False, "<think>\nabc</think>\n\nwet"),
    "ended by itself": ("a</think>dry", WET, True, "a</think>dry"),
    "half a mark": ("ab</thimble", WET, True, "ab</thim</think>\n\nwet"),
    "half a character": ("abé€", WET, True, "abé</think>\n\nwet"),
    "cut, and free": ("abcdefgh", None, True, "abc</think>\n\ndefgh"),
    "its own beginning": ("<think>abcdefgh", None, False, "<think>abc</think>\n\ndefgh"),
    "no thought": ("abcdefgh", None, False, "abcdefgh"),
}


def bound(form: str | None, *, is_open: bool, most: int = 3, answer_tokens: int | None = None) -> Guide:
    engine = cast(Engine, ByteEngine())
    return ThoughtBound(
        marks=THINK,
        engine=engine,
        vocabulary=engine.vocabulary(),
        said={},
        most=most,
        is_open=is_open,
        then=None if form is None else byte_grammars().compile(Rule("regex", form)),
        answer_tokens=answer_tokens,
    ).guide()


@pytest.mark.parametrize("name", BOUND)
def test_a_thought_is_closed_after_its_budget_and_what_follows_has_its_form(name: str) -> None:
    wanted, form, is_open, want = BOUND[name]
    guide, said, would = bound(form, is_open=is_open), bytearray(), list(wanted.encode())
    flat = np.zeros(END + 1, np.float32)
    while not guide.is_complete and (would or form):
        if forced := list(guide.forced()):
            tokens = forced
        else:
            allowed = guide.allow(flat)
            tokens = [
                would.pop(0) if would and np.isfinite(allowed[would[0]]) else int(np.flatnonzero(allowed == 0)[-1])
            ]
        for token in tokens:
            guide.accept(token)
            said.append(token)
    assert said.decode() == want


def test_an_answer_that_is_free_ends_after_as_many_tokens_as_it_may_have() -> None:
    for said, is_open in (("ab</think>\n\nyes", True), ("<think>ab</think>yes", False), (" yes", False)):
        guide, tokens = bound(None, is_open=is_open, most=9, answer_tokens=5), [*said.encode(), *b" and so on"]
        while not guide.is_complete:
            assert not guide.forced()
            guide.accept(tokens.pop(0))
        assert 4 <= len(tokens) < 11, said


def test_no_thought_ends_an_answer_whose_form_is_not_there_yet() -> None:
    flat = np.zeros(END + 1, np.float32)
    assert np.isneginf(bound(WET, is_open=True).allow(flat)[END])
    assert bound(None, is_open=True).allow(flat)[END] == 0
    assert bytes(bound(WET, is_open=True, most=0).forced()) == b"</think>\n\n"
    guide = bound(WET, is_open=True)
    for token in b"abc":
        guide.accept(token)
    assert bytes(guide.forced()) == b"</think>\n\n"
    with pytest.raises(EngineError, match="stands where a mark"):
        guide.accept(ord("x"))


@pytest.fixture(scope="module")
def thinker(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small model that thinks to its first " is", which its vocabulary calls the end of a thought."""
    folder = tmp_path_factory.mktemp("thinker")
    return material.tiny_bundle(folder, template=OPENED, renamed={"Ġis": "</think>"})


def test_an_answer_in_a_program_has_its_thought_apart(thinker: Bundle) -> None:
    question = "What is the sea?"
    with Model.open(thinker, threads=1, context=512) as model:
        answer = model.chat(question, max_tokens=48)
        assert answer.thought
        assert answer.text
        assert "</think>" not in answer.thought
        assert "<think>" not in answer.thought + answer.text
        streamed = "".join(chunk.text for chunk in model.stream(question, max_tokens=48))
        assert streamed.startswith("<think>")
        assert all(parted_thought(streamed, THINK, "length"))
        stopped = model.chat(question, max_tokens=48, stop=("e",))
        assert "e" in stopped.thought
        assert "e" not in stopped.text
        # What is held to a form is written without a thought, though this template begins one.
        assert model.call({"enum": ["wet", "dry"]}, question) in ("wet", "dry")
