"""What is piped into `run` and `chat` by logs, cron jobs and scripts: odd bytes, no stdin, no end, no server."""

import subprocess
import sys

import pytest

from fieldlm.cli.broker import free_port
from fieldlm.formats.bundle import Bundle

FAST = ["--threads", "1", "--context", "512", "--max-tokens", "3"]
FIELDLM = "import sys; from fieldlm.cli.main import main; sys.exit(main())"


def piped(arguments: list[str], given: bytes, *, encoding: str = "utf-8:strict") -> tuple[int, str, str]:
    command = [sys.executable, "-c", FIELDLM, *arguments]
    env = {"PYTHONIOENCODING": encoding, "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    done = subprocess.run(command, input=given, capture_output=True, check=False, timeout=100, env=env)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape"])
def test_bytes_that_are_no_text_are_one_line(base_bundle: Bundle, encoding: str) -> None:
    code, said, errors = piped(["run", str(base_bundle.folder), "Repeat:", *FAST], b"a\xff\xfe", encoding=encoding)
    assert (code, said, len(errors.splitlines())) == (2, "", 1)
    assert "is not UTF-8 (byte 1)" in errors


@pytest.mark.parametrize("encoding", ["utf-8:strict", "utf-8:surrogateescape"])
def test_a_conversation_outlives_a_line_that_is_no_text(base_bundle: Bundle, encoding: str) -> None:
    code, said, errors = piped(["chat", str(base_bundle.folder), *FAST], b"caf\xe9\nHello\n", encoding=encoding)
    assert code == 0
    assert said.strip()
    assert "no character" in errors
    assert "Traceback" not in errors


def test_a_long_message_that_the_input_ends_in_is_asked(base_bundle: Bundle) -> None:
    code, said, _ = piped(["chat", str(base_bundle.folder), *FAST], b'"""\nSay\nhello')
    assert code == 0
    assert said.strip()


@pytest.mark.parametrize("arguments", [["run", "BUNDLE", "Hello", *FAST], ["chat", "BUNDLE", *FAST]])
def test_a_closed_stdin_is_an_empty_one(base_bundle: Bundle, arguments: list[str]) -> None:
    given = [str(base_bundle.folder) if word == "BUNDLE" else word for word in arguments]
    closed = ["sh", "-c", 'exec "$@" <&-', "sh", sys.executable, "-c", FIELDLM, *given]
    done = subprocess.run(closed, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_a_conversation_without_an_answer_is_a_failure() -> None:
    code, said, errors = piped(["chat", "--url", f"http://127.0.0.1:{free_port()}"], b"Hello\n")
    assert (code, said) == (1, "")
    assert "no server answers" in errors
