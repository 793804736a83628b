"""More examples than are held in memory: tasks are found among a part, and all others are put to them."""

import json
import pickle
import subprocess
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from fieldlm.core.errors import InputError
from fieldlm_compiler.learn import curated
from fieldlm_compiler.learn.cluster import cluster
from fieldlm_compiler.learn.communities import Labels
from fieldlm_compiler.learn.curated import EXAMPLES, CuratedExample, read_examples, write_examples
from fieldlm_compiler.learn.embed import Embedder
from fieldlm_compiler.learn.points import Locator, Points, digest_of
from fieldlm_compiler.learn.streamed import placing, sample
from fieldlm_compiler.learn.streamed.placing import Placer, blocks, place
from fieldlm_compiler.learn.streamed.sample import sample_of
from fieldlm_compiler.learn.tasks import TASKS, read_round
from tests.support.ray_nodes import PATIENCE_S, two_nodes

KINDS = {
    "light": ("turn {} the {} lamp in the {}", ("on", "off", "down", "up"), ("red", "old", "big", "small")),
    "pizza": ("i want {} {} pizza with {} please", ("a", "one", "two", "three"), ("large", "cheap", "hot", "cold")),
    "train": (
        "when does the {} {} train to {} leave",
        ("next", "last", "first", "slow"),
        ("early", "late", "night", "day"),
    ),
}
PLACES = ("kitchen", "hall", "cellar", "garden", "attic", "bath", "office", "nursery", "studio", "porch")
THERE = """
import json, sys
from pathlib import Path
from fieldlm_compiler.learn.streamed import placing, sample
sample.MOST, sample.MOST_EXAMPLES, placing.BLOCK_BYTES = 200, 250, 5000
from fieldlm_compiler.learn.cluster import main
sys.exit(main(sys.argv[1:]))
"""


def example(text: str, kind: str, number: int) -> CuratedExample:
    return CuratedExample(
        messages=[{"role": "user", "content": text}],
        answer=json.dumps({"name": kind, "arguments": {}}),
        label_source="correction",
        session=f"s{number}",
        response=f"r{number}",
        split="train",
    )


def requests() -> list[CuratedExample]:
    """Return 480 distinct requests of three kinds, one of them made 100 times more."""
    said = [
        (pattern.format(*words), kind) for kind, (pattern, *parts) in KINDS.items() for words in product(*parts, PLACES)
    ]
    order = np.random.default_rng(0).permutation(len(said)).tolist()
    made = [said[at] for at in order] + 100 * [said[0]]
    return [example(text, kind, number) for number, (text, kind) in enumerate(made)]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if no more than 200 requests were held in memory."""
    monkeypatch.setattr(sample, "MOST", 200)
    monkeypatch.setattr(sample, "MOST_EXAMPLES", 250)
    monkeypatch.setattr(placing, "BLOCK_BYTES", 5000)


def in_folder(folder: Path, examples: list[CuratedExample]) -> Path:
    folder.mkdir(exist_ok=True)
    write_examples(folder / EXAMPLES, examples)
    return folder


@pytest.mark.usefixtures("few")
def test_the_same_requests_are_looked_at_in_every_round(tmp_path: Path) -> None:
    first = sample_of(in_folder(tmp_path / "first", requests()[:350]))
    more = sample_of(in_folder(tmp_path / "more", requests()))
    assert first.digests is not None
    assert more.digests is not None
    known, now = ({digest_of(each) for each in drawn.examples} for drawn in (first, more))
    assert len(known) == len(now) == 200
    before = {digest_of(each) for each in requests()[:350]}
    assert now & before <= known, "what was not looked at before is new"
    assert max(Counter(digest_of(each) for each in more.examples).values()) == 50
    assert len(more.examples) <= 250


def test_few_requests_are_all_looked_at(tmp_path: Path) -> None:
    drawn = sample_of(in_folder(tmp_path / "all", requests()))
    assert drawn.digests is None
    assert drawn.examples == requests()


@pytest.mark.usefixtures("few")
def test_what_people_split_is_always_looked_at(tmp_path: Path) -> None:
    folder = in_folder(tmp_path / "examples", requests())
    largest = sorted({digest_of(each) for each in requests()})[-9:]
    assert set(largest) <= {digest_of(each) for each in sample_of(folder, largest).examples}


@pytest.mark.usefixtures("few")
def test_a_file_that_changes_meanwhile_is_told_and_nothing_is_written(tmp_path: Path, embedder: Embedder) -> None:
    folder = in_folder(tmp_path / "examples", requests())

    def changing(placer: Placer, lines: Iterator[bytes]) -> Generator[Labels]:
        write_examples(folder / EXAMPLES, requests()[:300])
        yield from placing.here(placer, lines)

    with pytest.raises(InputError, match=r"examples\.jsonl changed while it was read; run the same command again"):
        cluster(folder, embedder=embedder, run=changing)
    assert not (folder / TASKS).exists()
    assert read_examples(folder) == requests()[:300]


@pytest.mark.usefixtures("few")
def test_labels_that_are_lost_on_the_way_cost_no_example(tmp_path: Path, embedder: Embedder) -> None:
    folder = in_folder(tmp_path / "examples", requests())

    def losing(placer: Placer, lines: Iterator[bytes]) -> Generator[Labels]:
        for labels in placing.here(placer, lines):
            yield labels[1:]

    with pytest.raises(ValueError, match="shorter"):
        cluster(folder, embedder=embedder, run=losing)
    assert read_examples(folder) == requests()


@pytest.mark.usefixtures("few")
def test_a_file_that_changes_while_it_is_written_is_told_and_stays(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = in_folder(tmp_path / "examples", requests())

    def changing(folder: Path) -> Iterator[CuratedExample]:
        write_examples(folder / EXAMPLES, requests()[:300])
        return curated.iterate_examples(folder)

    monkeypatch.setattr("fieldlm_compiler.learn.cluster.iterate_examples", changing)
    with pytest.raises(InputError, match=r"examples\.jsonl changed while it was read; run the same command again"):
        cluster(folder, embedder=embedder)
    assert not (folder / TASKS).exists()
    assert read_examples(folder) == requests()[:300]


@pytest.mark.usefixtures("few")
def test_every_request_comes_to_its_task_and_keeps_its_id(tmp_path: Path, embedder: Embedder) -> None:
    folder = in_folder(tmp_path / "examples", requests()[:400])
    tasks = cluster(folder, embedder=embedder)
    assert len(tasks) == len(KINDS)
    found = read_examples(folder)
    assert [each.response for each in found] == [each.response for each in requests()[:400]]
    of_kind = {(json.loads(each.answer)["name"], each.task) for each in found}
    assert len(of_kind) == len(KINDS), "each kind is one task"
    assert {task["id"]: task["size"] for task in tasks} == Counter(each.task for each in found)
    # A second round with more requests knows them again.
    write_examples(folder / EXAMPLES, requests())
    cluster(folder, embedder=embedder)
    assert {(json.loads(each.answer)["name"], each.task) for each in read_examples(folder)} == of_kind
    assert sum(task.size for task in read_round(folder / TASKS).tasks) == len(requests())


def test_what_is_fitted_says_the_same_of_a_text_whatever_is_beside_it(embedder: Embedder) -> None:
    examples = requests()
    points, locator = Locator.fit(examples[:300], embedder)
    twin: Locator = pickle.loads(pickle.dumps(locator))
    alone = np.vstack([twin([each]) for each in examples[300:310]])
    np.testing.assert_allclose(alone, locator(examples[300:310]), atol=1e-5)
    # The sentence model is not asked any more; what it would say is foretold.
    assert float((locator(examples[:300]) * points).sum(axis=1).min()) > 0.8


@pytest.mark.usefixtures("few")
def test_libraries_have_their_threads_again_when_all_is_placed(tmp_path: Path, embedder: Embedder) -> None:
    def threads() -> list[int]:
        return [each["num_threads"] for each in threadpool_info()]

    folder = in_folder(tmp_path / "examples", requests())
    cluster(folder, embedder=embedder)
    with threadpool_limits(limits=2):
        before = threads()
        cluster(folder, embedder=embedder)
        assert threads() == before


def test_blocks_are_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / EXAMPLES
    write_examples(file, requests())
    for size in (1, 100, 3000, 1 << 20):
        monkeypatch.setattr(placing, "BLOCK_BYTES", size)
        found = list(blocks(file))
        assert b"".join(found) == file.read_bytes()
        assert all(block.endswith(b"\n") for block in found)


def test_a_request_that_is_known_has_its_own_label(embedder: Embedder, tmp_path: Path) -> None:
    examples = requests()[:300]
    points = Points.of(examples)
    vectors, locator = Locator.fit([examples[first] for first in points.firsts], embedder)
    labels = np.arange(len(points.firsts)) % 7  # such as no neighbour would say
    placer = Placer(locator, vectors, labels, points.digests, seed=0)
    file = in_folder(tmp_path / "examples", examples) / EXAMPLES
    assert placer(file.read_bytes()).tolist() == labels[points.of_example].tolist()


def test_a_request_is_of_one_task_whatever_its_blocks_say(tmp_path: Path, embedder: Embedder) -> None:
    examples = [*requests()[:30], *requests()[:30]]
    points = Points.of(examples)
    vectors, locator = Locator.fit([examples[first] for first in points.firsts], embedder)
    placer = Placer(locator, vectors, np.zeros(len(points.firsts), np.int64), points.digests, seed=0)
    file = in_folder(tmp_path / "examples", examples) / EXAMPLES
    digests = np.array([int(digest_of(each), 16) for each in examples], np.uint32)

    def numbered(_: Placer, lines: Iterator[bytes]) -> Generator[Labels]:
        yield np.arange(sum(block.count(b"\n") for block in lines))

    assert place(file, placer, digests, numbered).tolist() == [*range(30), *range(30)]


def test_a_cluster_gives_what_one_machine_gives(tmp_path: Path) -> None:
    here, there = (in_folder(tmp_path / name, requests()) for name in ("here", "there"))

    def run(*arguments: str) -> None:
        """In a process of its own: Ray leaves threads behind in the one that joins a cluster."""
        asked = [sys.executable, "-c", THERE, *arguments]
        ran = subprocess.run(asked, capture_output=True, text=True, check=False, timeout=PATIENCE_S)
        assert ran.returncode == 0, ran.stderr

    run(str(here))
    with two_nodes() as (address, _, _):
        run(str(there), "--ray", address)
    for name in (EXAMPLES, TASKS):
        assert (here / name).read_bytes() == (there / name).read_bytes()
