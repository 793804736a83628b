import io
import json
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fieldlm.formats.bundle import Bundle
from fieldlm.formats.errors import InputError, LinkError
from fieldlm.runtime.chat import main, ps_main, run_main
from fieldlm.runtime.listen import listening
from fieldlm.runtime.live import Live
from fieldlm.runtime.server import make_app

FAST = ["--threads", "1", "--context", "512"]


@pytest.fixture(scope="module")
def url(base_bundle: Bundle) -> Iterator[str]:
    live = Live(base_bundle, threads=1, context=512, parallel=1)
    with listening(make_app(live, lambda _: None, ready=lambda: None)) as server:
        yield server.url
    live.close()


def type_in(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(text))


def test_run_prints_the_answer(base_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main([str(base_bundle.folder), "Hello", "--max-tokens", "4", *FAST]) == 0
    printed = capsys.readouterr().out
    assert run_main([str(base_bundle.folder), "Hello", "--max-tokens", "4", "--json", *FAST]) == 0
    document = json.loads(capsys.readouterr().out)
    assert printed == document["text"] + "\n"
    assert (document["outcome"], document["completion_tokens"]) == ("length", 4)
    assert document["generation"] == base_bundle.generation


def test_run_reads_the_prompt_from_a_pipe(
    base_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "Hello")
    assert run_main([str(base_bundle.folder), "--max-tokens", "2", *FAST]) == 0
    assert capsys.readouterr().out.strip()
    type_in(monkeypatch, " \n")
    with pytest.raises(InputError, match="the prompt is empty"):
        run_main([str(base_bundle.folder)])


def test_a_conversation_remembers_until_it_is_cleared(
    url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    type_in(monkeypatch, "Hello\n/help\nHello\n\n/clear\nHello\n/exit\nnever asked\n")
    assert main(["--url", url, "--max-tokens", "6"]) == 0
    first, helped, second, third = capsys.readouterr().out.splitlines()
    assert helped.startswith("/exit leaves")
    assert first == third
    assert second != first


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
    assert "the context of 512 holds it and the answer" in captured.err
    assert captured.out.strip()


def test_ps_shows_what_is_served(url: str, base_bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert ps_main(["--url", url]) == 0
    row = capsys.readouterr().out.splitlines()[-1].split()
    assert row[:5] == ["smollm2-135m-instruct", base_bundle.generation, "llama", "Q4_1", "512"]
    assert ps_main(["--url", url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ready"]["status"] == "ready"


def test_a_server_that_is_not_there_is_one_clear_line(url: str) -> None:
    with pytest.raises(LinkError, match=r"no server answers at http://127\.0\.0\.1:9: .*fieldlm serve"):
        ps_main(["--url", "http://127.0.0.1:9"])
    with pytest.raises(InputError, match="is not the address of a server"):
        ps_main(["--url", "kiosk"])
    with pytest.raises(InputError, match="not both"):
        main(["bundle", "--url", url])


def test_ctrl_c_stops_the_answer_and_not_the_program(base_bundle: Bundle) -> None:
    program = "import sys; from fieldlm.runtime.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "chat", str(base_bundle.folder), "--max-tokens", "490", *FAST]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as chat:
        assert chat.stdin
        assert chat.stdout
        chat.stdin.write("Repeat the word tea for ever: tea tea tea tea tea tea\n")
        chat.stdin.flush()
        assert chat.stdout.read(8)
        chat.send_signal(signal.SIGINT)
        out, err = chat.communicate("/exit\n", timeout=120)
        assert (chat.returncode, err) == (0, "")
    assert len(out.split()) < 400
