"""What people said lies where nobody else on the machine reads it, whatever the umask, from store to data set."""

import os
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.learn.curate import curate
from fieldlm_compiler.learn.curated import EXAMPLES, read_examples, write_examples
from fieldlm_compiler.learn.dataset import dataset, without_sessions
from fieldlm_compiler.learn.task_edits.edits import TaskEdit, TaskEdits, write_edits
from fieldlm_compiler.learn.tasks import TASKS, Round, write_round
from fieldlm_compiler.pipeline.child import Ran
from fieldlm_compiler.pipeline.stages import Stages
from fieldlm_compiler.rounds.task_command import main as show_tasks
from tests.support.usage import CONSENT, Usage

SAID = [(f"bring tea number {number}", "order") for number in range(12)]


@pytest.fixture(autouse=True)
def umask() -> Generator[None]:
    """The umask that leaves everybody to read and write what is made."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def files_for_all(root: Path) -> list[str]:
    """Return the files below `root` that another user of this machine can come to and read, or replace."""
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        folders[:] = [each for each in folders if (Path(folder) / each).stat().st_mode & 0o077]
        found += [each for each in files if (Path(folder) / each).stat().st_mode & 0o077]
    return sorted(found)


def stored(where: str) -> str:
    """Fill the store at `where` with what twelve customers said, and leave everything of it on the disk."""
    Usage(where).customers(SAID, prefix="customer", each=1)
    with open_sink(where) as sink:
        sink.note_presence("kiosk-1", '{"state":"ready"}')
        sink.tidy(finish=True)
        sink.compact()
    return where


def curated(tmp_path: Path) -> Path:
    """Return a folder of examples; its store lies in a private folder."""
    store = tmp_path / "elsewhere" / "store"
    curate(stored(str(store)), tmp_path / "examples", consents=[CONSENT], eval_share=0.3)
    return tmp_path / "examples"


def made_dataset(tmp_path: Path) -> None:
    folder = dataset(curated(tmp_path), tmp_path / "datasets")
    gone = read_examples(tmp_path / "examples")[0].session
    assert without_sessions(folder, {gone})


def edited(tmp_path: Path) -> None:
    write_round(tmp_path / "clustered" / TASKS, Round())
    write_edits(tmp_path / "rounds", TaskEdits([TaskEdit(kind="rename", task="task-1", name="what people said")]))


def drawn(tmp_path: Path) -> None:
    folder = curated(tmp_path)
    write_round(folder / TASKS, Round())
    assert show_tasks([str(folder), "--page", str(tmp_path / "tasks.html")]) == 0


def made_stage(tmp_path: Path) -> None:
    def make(folder: Path) -> Ran:
        (folder / "samples").write_text("what people said")
        return Ran(value="what people said", seconds=0.0, peak_mb=0.0)

    folder, _ = Stages(tmp_path / "work").run("samples", {}, make)
    assert (folder / "samples").is_file()


KINDS: dict[str, Callable[[Path], object]] = {
    "parquet": lambda folder: stored(str(folder / "deep" / "store")),
    "delta": lambda folder: stored(f"delta:{folder / 'deep' / 'lake'}"),
    "delta by its URL": lambda folder: stored((folder / "deep" / "a lake").as_uri().replace("file:", "delta:file:", 1)),
    "examples": curated,
    "data sets": made_dataset,
    "tasks and edits": edited,
    "page of tasks": drawn,
    "stages": made_stage,
}


@pytest.mark.parametrize("kind", KINDS)
def test_nobody_else_reads_what_people_said(kind: str, tmp_path: Path) -> None:
    KINDS[kind](tmp_path)
    assert [path for path in tmp_path.rglob("*") if path.is_file()]
    assert [each for each in files_for_all(tmp_path) if not each.endswith(".lock")] == []


def test_a_folder_that_is_there_keeps_its_rights_and_what_is_new_in_it_is_private(tmp_path: Path) -> None:
    for name in ("examples", "lake", "datasets"):
        (tmp_path / name).mkdir(mode=0o755)
    stored(f"delta:{tmp_path / 'lake'}")
    dataset(curated(tmp_path), tmp_path / "datasets")
    assert {(tmp_path / name).stat().st_mode & 0o777 for name in ("examples", "lake", "datasets")} == {0o755}
    assert [each for each in files_for_all(tmp_path) if not each.endswith(".lock")] == []


def test_a_file_that_its_owner_shares_stays_shared(tmp_path: Path) -> None:
    file = curated(tmp_path) / EXAMPLES
    file.chmod(0o640)
    write_examples(file, read_examples(file))
    assert file.stat().st_mode & 0o777 == 0o640
