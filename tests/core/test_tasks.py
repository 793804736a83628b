"""Background tasks: a crash is logged once, counted, and the task begins again or not, as it was declared."""

import itertools
import threading
import time

import pytest

from fieldlm.core.tasks import BackgroundTask, Tasks
from fieldlm.core.timing import within

SECRET = "my password is hunter2"


def crash() -> None:
    raise ValueError(SECRET)


def ended(task: BackgroundTask) -> bool:
    task.thread.join(60)
    return not task.thread.is_alive()


def test_a_crash_is_logged_once_with_the_place_and_counted_and_not_begun_again(
    logged: pytest.LogCaptureFixture,
) -> None:
    tasks = Tasks()
    assert ended(tasks.start("poll", crash))
    (record,) = logged.records
    assert record.levelname == "ERROR"
    assert "task poll crashed: ValueError at test_tasks.py:" in record.getMessage()
    assert tasks.status().crashes == {"poll": 1}
    assert tasks.status().running == ()


def test_what_a_crash_quotes_is_not_logged(logged: pytest.LogCaptureFixture) -> None:
    assert ended(Tasks().start("spool", crash))
    assert "ValueError" in logged.text
    assert SECRET not in logged.text


def test_what_the_system_says_is_logged(logged: pytest.LogCaptureFixture) -> None:
    def read() -> None:
        raise OSError(5, "Input/output error")

    assert ended(Tasks().start("spool", read))
    assert "OSError ([Errno 5] Input/output error)" in logged.text


def test_a_task_that_restarts_begins_again_until_it_ends_by_itself(logged: pytest.LogCaptureFixture) -> None:
    runs: list[float] = []

    def run() -> None:
        runs.append(time.monotonic())
        if len(runs) < 4:
            raise KeyError

    tasks = Tasks(restart_s=0.05)
    assert ended(tasks.start("sync", run, restarts=True))
    assert tasks.status().crashes == {"sync": 3}
    assert len(logged.records) == 3
    pauses = [later - earlier for earlier, later in itertools.pairwise(runs)]
    assert all(pause >= wait for pause, wait in zip(pauses, (0.05, 0.1, 0.2), strict=True))


def test_a_panic_that_is_no_exception_is_caught_too() -> None:
    class Panic(BaseException):
        """What pyo3 raises."""

    def run() -> None:
        raise Panic

    tasks = Tasks()
    assert ended(tasks.start("canary", run))
    assert tasks.status().crashes == {"canary": 1}


def test_the_owner_of_a_part_sees_its_tasks_and_its_crashes_and_the_log_says_them_once(
    logged: pytest.LogCaptureFixture,
) -> None:
    device = Tasks()
    part, other = Tasks(device), Tasks(device)
    is_over = threading.Event()
    part.start("poll", is_over.wait)
    assert ended(other.start("guard", crash))
    assert device.status().running == ("poll",)
    assert device.status().crashes == other.status().crashes == {"guard": 1}
    assert part.status().crashes == {}
    assert len(logged.records) == 1
    is_over.set()
    device.close()
    assert device.status().running == ()


def test_engines_of_ever_more_models_are_counted_under_one_name() -> None:
    tasks = Tasks()
    for model in ("one", "two"):
        tasks.crashed(f"llama[{model}.gguf]", ValueError())
    assert tasks.status().crashes == {"llama": 2}


def test_a_task_that_does_not_end_is_named_and_not_waited_for_twice(logged: pytest.LogCaptureFixture) -> None:
    is_over = threading.Event()
    tasks = Tasks()
    task = tasks.start("tortoise", is_over.wait)
    assert not task.join(0.01)
    tasks.close(3600)
    assert [record.getMessage() for record in logged.records] == [
        "task tortoise does not end; it is left behind after 0.01 s"
    ]
    is_over.set()
    assert ended(task)


def test_who_closes_does_not_wait_for_the_next_try_of_what_crashed() -> None:
    tasks = Tasks(restart_s=3600)
    task = tasks.start("poll", crash, restarts=True)
    while not tasks.status().crashes:
        time.sleep(0.01)
    tasks.close()
    assert ended(task)
    assert tasks.status().crashes == {"poll": 1}


def test_a_limit_that_crashes_is_logged_and_the_block_goes_on(logged: pytest.LogCaptureFixture) -> None:
    with within(0.01, crash):
        while "task limit crashed" not in logged.text:
            time.sleep(0.01)
    assert not [thread for thread in threading.enumerate() if thread.name == "limit"]


def test_a_limit_that_was_not_needed_leaves_no_thread() -> None:
    called: list[bool] = []
    with within(3600, lambda: called.append(True)):
        pass
    assert not called
    assert not [thread for thread in threading.enumerate() if thread.name == "limit"]
