"""The commands that talk: one answer, a conversation, at a terminal and in a pipe; and a look at a server."""

import io
import json
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import pytest

from fieldlm.api.app import make_app
from fieldlm.cli import ps, run
from fieldlm.cli.chat import main
from fieldlm.cli.conversation import HELP
from fieldlm.core.errors import FieldlmError, InputError, UnavailableError
from fieldlm.engines import EngineOptions
from fieldlm.formats.bundle import Bundle
from fieldlm.inference.generations import Generations
from fieldlm.network.api_keys import Keys
from fieldlm.network.http_client import HttpClient
from fieldlm.network.http_server import listening
from tests.support.material import lora_gguf, tiny_bundle

FAST = ["--threads", "1", "--context", "512"]
FIELDLM = [sys.executable, "-c", "import sys; from fieldlm.cli.main import main; sys.exit(main())"]
ENDLESS = "Repeat the word tea for ever: tea tea tea tea tea tea"
PATIENCE_S = 120
LENGTH = re.compile(rb"content-length: (\d+)\r\n(?:.+\r\n)*\r\n", re.I)


@pytest.fixture(scope="module")
def url(base_bundle: Bundle) -> Iterator[str]:
    live = Generations(base_bundle, EngineOptions(threads=1, context=512, parallel=1))
    with listening(make_app(live, lambda _: None, ready=lambda: None)) as server:
        yield server.url
    live.close()


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_run_prints_the_answer(base_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main([str(base_bundle.folder), "Hello", "--max-tokens", "4", *FAST]) == 0
    printed = capsys.readouterr().out
    assert run.main([str(base_bundle.folder), "Hello", "--max-tokens", "4", "--json", *FAST]) == 0
    document = json.loads(capsys.readouterr().out)
    assert printed == document["text"] + "\n"
    assert (document["outcome"], document["completion_tokens"]) == ("length", 4)
    assert document["generation"] == base_bundle.generation


def test_run_reads_the_prompt_from_a_pipe(
    base_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "Hello")
    assert run.main([str(base_bundle.folder), "--max-tokens", "2", *FAST]) == 0
    assert capsys.readouterr().out.strip()
    type_in(monkeypatch, " \n")
    with pytest.raises(InputError, match="the prompt is empty"):
        run.main([str(base_bundle.folder)])


def test_what_is_piped_in_stands_below_the_prompt(base_bundle: Bundle, tmp_path: Path) -> None:
    text = tmp_path / "log.txt"
    text.write_text("The door is open.\n")

    def answer(prompt: str, stdin: IO[str] | int) -> dict[str, Any]:
        command = [*FIELDLM, "run", str(base_bundle.folder), prompt, "--max-tokens", "4", "--json", *FAST]
        return json.loads(subprocess.run(command, stdin=stdin, capture_output=True, check=True, timeout=120).stdout)

    with text.open() as file:
        piped = answer("What is open?", file)
    alone = answer("What is open?", subprocess.DEVNULL)
    both = answer("What is open?\n\nThe door is open.\n", subprocess.DEVNULL)
    assert (piped["text"], piped["prompt_tokens"]) == (both["text"], both["prompt_tokens"])
    assert piped["prompt_tokens"] > alone["prompt_tokens"]


def test_an_answer_that_fails_is_no_answer(
    base_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tiny_bundle(tmp_path / "b", adapter=lora_gguf(tmp_path / "nan.gguf", scale=float("nan")))
    with pytest.raises(UnavailableError, match="damaged"):
        run.main([str(broken.folder), "Hello", "--max-tokens", "4", *FAST])


def test_commands_change_how_it_answers(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["/again", "/stats", "/set max-tokens 2", "Hello", "/again", "/stats", "/set top 3", "/set seed 0", "/nope"]
    type_in(monkeypatch, "\n".join(lines))
    assert main(["--url", url]) == 0
    again, untimed, changed, first, second, timed, refused, seeded, unknown, *_ = capsys.readouterr().out.splitlines()
    assert (again, untimed) == ("there is nothing to ask again", "nothing was timed yet")
    assert changed == "temperature 0, max-tokens 2, seed drawn"
    assert first == second
    assert re.fullmatch(r"2 tokens, [\d.]+ tokens/s", timed)
    assert refused == "/set top 3: want temperature, max-tokens or seed, and a number"
    assert seeded == "temperature 0, max-tokens 2, seed 0"
    assert unknown == "there is no /nope"


def test_a_conversation_in_json_is_one_document(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "Hello\n/stats\n" + "word " * 900 + "\n/again\n")
    assert main(["--url", url, "--max-tokens", "2", "--json"]) == 0
    said = capsys.readouterr()
    first, refused, again = json.loads(said.out)["answers"]
    assert (first["question"], first["outcome"], first["tokens"]) == ("Hello", "length", 2)
    assert "maximum context length is 512 tokens" in refused["error"]
    assert (again["question"], again["text"]) == ("Hello", first["text"])
    assert "tokens/s" in said.err


def test_a_message_may_have_several_lines(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, '"""Hello\n  /clear\nyou"""\n/clear\n"""Hello"""\n/clear\nHello\n')
    assert main(["--url", url, "--max-tokens", "6"]) == 0
    long, marked, plain = capsys.readouterr().out.splitlines()
    assert marked == plain
    assert long != plain, "all three lines were asked, and /clear among them is no command"


def test_a_message_may_begin_with_a_slash(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, '//etc is full\n"""/clear"""\n"""//"""\n//\n/clear\n')
    assert main(["--url", url, "--max-tokens", "1", "--json"]) == 0
    answers = json.loads(capsys.readouterr().out)["answers"]
    assert [each["question"] for each in answers] == ["/etc is full", "/clear", "//", "/"]
    assert "//" in HELP


def test_a_server_that_is_not_there_is_told_to_who_asks_nothing(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "")
    assert main(["--url", url]) == 0
    for given in ("", "/stats\n"):
        type_in(monkeypatch, given)
        with pytest.raises(UnavailableError, match="no server answers"):
            main(["--url", "http://127.0.0.1:9"])
    assert capsys.readouterr().err == ""


def test_a_locked_server_is_talked_to_with_the_key_of_the_environment(
    base_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    live = Generations(base_bundle, EngineOptions(threads=1, context=512, parallel=1))
    path = tmp_path / "s"
    app = make_app(live, lambda _: None, ready=lambda: None, keys=Keys(["a-key-of-fair-length"]))
    with listening(app) as server:
        with pytest.raises(InputError, match=r"an API key is needed.*; put the key into FIELDLM_API_KEY"):
            ps.main(["--url", server.url])
        monkeypatch.setenv("FIELDLM_API_KEY", "a-key-of-fair-length")
        assert ps.main(["--url", server.url]) == 0
        type_in(monkeypatch, "Hello\n")
        assert main(["--url", server.url, "--max-tokens", "2"]) == 0
    with listening(app, unix_socket=path):
        monkeypatch.delenv("FIELDLM_API_KEY")
        assert ps.main(["--url", f"unix:{path}"]) == 0
    live.close()
    assert capsys.readouterr().out.count("smollm2") == 2


def test_a_conversation_remembers_until_it_is_cleared(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    story = "My dog is called Rex and my cat is called Tom."
    again = "How is my cat called?"
    type_in(monkeypatch, f"{story}\n/help\n{again}\n\n/clear\n{again}\n/clear\n{story}\n/exit\nnever asked\n")
    assert main(["--url", url, "--max-tokens", "8"]) == 0
    first, *helped, remembered, forgotten, last = capsys.readouterr().out.splitlines()
    assert helped == HELP.splitlines()
    assert first == last
    assert remembered != forgotten


def test_a_bundle_and_a_server_say_the_same(
    url: str, base_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "Hello\n")
    assert main(["--url", url, "--max-tokens", "4", "--seed", "1"]) == 0
    remote = capsys.readouterr().out
    type_in(monkeypatch, "Hello\n")
    assert main([str(base_bundle.folder), "--max-tokens", "4", *FAST]) == 0
    assert capsys.readouterr().out == remote


def test_a_refused_question_is_said_and_the_conversation_goes_on(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "word " * 900 + "\nHello\n")
    assert main(["--url", url, "--max-tokens", "2"]) == 0
    captured = capsys.readouterr()
    assert "maximum context length is 512 tokens" in captured.err
    assert captured.out.strip()


def test_ps_shows_what_is_served(url: str, base_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert ps.main(["--url", url]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:5] == ["smollm2-135m-instruct", base_bundle.generation, "llama", "Q4_1", "512"]
    assert ps.main(["--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"]["status"] == "ready"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 6\r\n\r\n<html>", "is not fieldlm"),
        (b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 9000\r\n\r\n" + b"[" * 9000, "is not fieldlm"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n[]", "gives no reason"),
        (b'HTTP/1.1 200 OK\r\n\r\ndata: {"choices": [', "broke off"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: {}\n", "broke off"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "hung up"),
    ],
)
def test_a_strangers_answer_is_one_clear_line(answer: bytes, line: str) -> None:
    with stranger(answer) as url, pytest.raises(FieldlmError, match=line):
        list(HttpClient(url).events("/v1/chat/completions", {}))


@contextmanager
def stranger(answer: bytes) -> Generator[str]:
    """Somebody who gives one request this answer, whatever it was."""
    with socket.create_server(("127.0.0.1", 0)) as door:

        def serve() -> None:
            client, _ = door.accept()
            asked = b""
            with client:
                # What is not read when the socket closes resets the connection.
                while not (found := LENGTH.search(asked)) or len(asked) < found.end() + int(found[1]):
                    asked += client.recv(65536)
                client.sendall(answer)

        server = threading.Thread(target=serve)
        server.start()
        yield f"http://127.0.0.1:{door.getsockname()[1]}"
        server.join()


def test_a_strangers_words_neither_draw_on_the_terminal_nor_end_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    body = json.dumps({"error": {"message": "\x1b[2Jask http://me:Open5esame@host"}}).encode()
    type_in(monkeypatch, "Hello")
    with stranger(b"HTTP/1.1 400 Bad Request\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)) as url:
        assert main(["--url", url]) == 1
    assert capsys.readouterr().err == "! \\x1b[2Jask http://host\n"
    events = [
        {"choices": [{"delta": {"role": "assistant", "content": None}}], "error": None},
        {"choices": [{"delta": {"content": "Tea"}}]},
        {"choices": [{"delta": None, "finish_reason": "stop"}]},
        {"choices": [], "usage": {}},
    ]
    stream = b"".join(b"data: %b\n\n" % json.dumps(event).encode() for event in events) + b"data: [DONE]\n\n"
    type_in(monkeypatch, "Hello")
    with stranger(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + stream) as url:
        assert main(["--url", url]) == 0
    assert capsys.readouterr().out == "Tea\n"


def test_a_server_that_is_not_there_is_one_clear_line(url: str) -> None:
    with pytest.raises(UnavailableError, match=r"no server answers at http://127\.0\.0\.1:9: .*fieldlm serve"):
        ps.main(["--url", "http://127.0.0.1:9"])
    with pytest.raises(InputError, match="is not the address of a server"):
        ps.main(["--url", "kiosk"])
    with pytest.raises(InputError, match="not both"):
        main(["bundle", "--url", url])


class Terminal:
    """A program on a terminal of its own, and a person at it."""

    def __init__(self, *arguments: str) -> None:
        self.shown = ""
        self._pid, self._end = pty.fork()
        if not self._pid:
            os.execv(FIELDLM[0], [*FIELDLM, *arguments])

    def wait_for(self, text: str) -> str:
        """Read until `text` is shown; return what was shown before it since the last time."""
        fresh = ""
        while text not in fresh:
            assert select.select([self._end], [], [], PATIENCE_S)[0], f"{text!r} does not come after {self.shown!r}"
            fresh += os.read(self._end, 1).decode("latin-1")
        self.shown += fresh
        return fresh.removesuffix(text)

    def type(self, keys: str) -> None:
        os.write(self._end, keys.encode())

    def interrupt(self) -> None:
        """Press Ctrl-C until something comes: between the prompt and its wait for keys Python's readline hears none."""
        self.type(CTRL_C)
        while not select.select([self._end], [], [], 2)[0]:
            self.type(CTRL_C)

    def leave(self) -> int:
        """Read to the end, and return the exit code."""
        with suppress(OSError):
            while piece := os.read(self._end, 4096):
                self.shown += piece.decode("latin-1")
        os.close(self._end)
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


UP, CTRL_C, CTRL_D = "\x1b[A", "\x03", "\x04"


def test_a_person_at_a_terminal_has_a_prompt_a_history_and_a_way_out(base_bundle: Bundle) -> None:
    terminal = Terminal("run", str(base_bundle.folder), "--max-tokens", "3", *FAST)
    terminal.wait_for("\n> ")
    terminal.type("Hello\n")
    first = terminal.wait_for("\n> ")
    assert "cut off after 3 tokens; /set max-tokens 6" in first
    terminal.type("/clear\n")
    terminal.wait_for("\n> ")
    terminal.type(UP + UP)
    terminal.wait_for("Hello")
    terminal.type("\n")
    assert terminal.wait_for("\n> ").strip() == first.split("Hello", 1)[1].strip(), "two lines up is the first one"
    terminal.interrupt()
    terminal.wait_for("/exit leaves")
    terminal.wait_for("\n> ")
    terminal.type(CTRL_D)
    assert terminal.leave() == 0
    assert terminal.shown.endswith("\n"), "the shell's prompt begins on a line of its own"


def test_ctrl_c_ends_one_answer_with_the_exit_code_shells_know(base_bundle: Bundle) -> None:
    terminal = Terminal("run", str(base_bundle.folder), ENDLESS, "--max-tokens", "490", *FAST)
    terminal.wait_for("tea")
    terminal.type(CTRL_C)
    assert terminal.leave() == 130
    assert "Traceback" not in terminal.shown


def test_ctrl_c_stops_the_answer_and_not_the_program(base_bundle: Bundle) -> None:
    command = [*FIELDLM, "chat", str(base_bundle.folder), "--max-tokens", "490", *FAST]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as chat:
        assert chat.stdin
        assert chat.stdout
        chat.stdin.write(f"{ENDLESS}\n")
        chat.stdin.flush()
        assert chat.stdout.read(8)
        chat.send_signal(signal.SIGINT)
        out, err = chat.communicate("/exit\n", timeout=120)
        assert (chat.returncode, err) == (0, "")
    assert len(out.split()) < 400
