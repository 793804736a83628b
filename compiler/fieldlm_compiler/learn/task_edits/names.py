"""What people read of a task, or of a scenario: a name, a line of words, an instance; none that few customers said."""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from fieldlm_compiler.learn.curated import CuratedExample
from fieldlm_compiler.learn.shapes import call_of, spelling
from fieldlm_compiler.learn.tasks import telling_words, words_of_most

NAME_WORDS, DESCRIPTION_WORDS = 3, 8
Told = tuple[str, str]
"""A name, and a line about what people say."""


def common_words(examples: Sequence[CuratedExample], of: Sequence[int]) -> frozenset[str]:
    """Return the words that are said in half the groups of examples or more; `of` is the group of each."""
    texts: dict[int, list[tuple[str, str]]] = {}
    for example, label in zip(examples, of, strict=True):
        texts.setdefault(label, []).append((example.utterance, example.voter))
    return words_of_most(list(texts.values()))


def told(
    examples: Sequence[CuratedExample],
    of: Sequence[int],
    ids: Sequence[str],
    least_sessions: int,
    common: Collection[str],
) -> list[Told]:
    """Return name and description of each group of examples; its id and nothing where too few customers are in it.

    `of` is the place in `ids` of each example. In none is a word that fewer than `least_sessions` customers said. A
    name is the function that most answers call and the most telling words, without those in `common` if there are
    others.
    """
    voters: list[set[str]] = [set() for _ in ids]
    functions: list[Counter[str]] = [Counter() for _ in ids]
    texts: list[list[tuple[str, str]]] = [[] for _ in ids]
    for example, label in zip(examples, of, strict=True):
        voters[label].add(example.voter)
        functions[label][call_of(example.answer)[0]] += 1
        texts[label].append((example.utterance, example.voter))
    shown: list[Told] = []
    for label, words in enumerate(telling_words(texts, DESCRIPTION_WORDS, least_sessions, common)):
        if len(voters[label]) < least_sessions or not functions[label]:
            shown.append((ids[label], ""))
            continue
        function, calls = functions[label].most_common(1)[0]
        speaks = function != "text" and calls > 0.6 * functions[label].total()
        typical = " ".join(words[:NAME_WORDS])
        called = [name for name, _ in functions[label].most_common(NAME_WORDS) if name != "text"]
        said = f"people say {', '.join(words)}" if words else "people say nothing"
        said += f"; answered by {', '.join(called)}" if called else ""
        shown.append((f"{function}: {typical}" if speaks else typical or function, said))
    return shown


def instance(examples: Iterable[CuratedExample], members: Sequence[CuratedExample], least_sessions: int) -> str:
    """Return the first of `examples` in which every word was said by `least_sessions` customers of `members`, or ""."""
    if least_sessions < 2:
        return next((example.utterance for example in examples), "")
    voters: dict[str, set[str]] = {}
    for member in members:
        for word in spelling(member.utterance).split():
            voters.setdefault(word, set()).add(member.voter)
    return next(
        (
            example.utterance
            for example in examples
            if all(len(voters.get(word, ())) >= least_sessions for word in spelling(example.utterance).split())
        ),
        "",
    )
