"""Which task a stored request is: a bundle's router reads what the customer said last, where that came with consent."""

import functools
from pathlib import Path
from typing import Any

import msgspec

from fieldlm.core.errors import InputError
from fieldlm.formats.router import NAME, Router, question_of, read_router
from fieldlm_compiler.fleet.view import TellTask

KEPT = 50_000


def tell_by(path: Path) -> TellTask:
    """Return what tells a request's task by the router at `path`, a file or the folder of one."""
    path = path / NAME if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"{path} does not exist; `fieldlm cluster` and `fieldlm round` write a {NAME}")
    router = read_router(path)

    @functools.lru_cache(maxsize=KEPT)
    def task_of(prompt: str) -> tuple[str, str] | None:
        return _task(router, prompt)

    def tell(row: dict[str, Any]) -> tuple[str, str] | None:
        return task_of(row["prompt"])

    return tell


def _task(router: Router, prompt: str) -> tuple[str, str] | None:
    try:
        question = question_of(msgspec.json.decode(prompt, type=list[dict[str, Any]]))
    except (msgspec.DecodeError, RecursionError):
        return None
    if not question:
        return None
    task = router.task(question)
    return (task, router.name(task)) if task is not None else ("", "none that is known")
