"""docs/examples/c: compiled without a warning, run against a real server on a unix socket, and on what may go wrong."""

import json
import random
import signal
import socket
import subprocess
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fieldlm.formats.bundle import Bundle
from tests.support.api_server import ApiServer, api_server
from tests.support.depth import SEED, scaled

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[1] / "docs/examples/c"
STRICT = ("-std=c99", "-Wall", "-Wextra", "-Werror", "-pedantic")
SANITIZED = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
PATIENCE_S = 300
LONG = "Count from one to five hundred, in words."
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"

Result = tuple[int, int, str, str, str]


def compiled(folder: Path, source: Path, *flags: str) -> Path:
    program = folder / source.stem
    command = ["cc", *STRICT, *flags, "-I", EXAMPLE, "-o", program, source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return program


@pytest.fixture(scope="module")
def sanitizers(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The flags that have gcc watch memory and arithmetic, where it can do so on this machine."""
    folder = tmp_path_factory.mktemp("probe")
    (source := folder / "probe.c").write_text("int main(void) { return 0; }\n")
    done = subprocess.run(["cc", *SANITIZED, "-o", folder / "probe", source], capture_output=True, check=False)
    runs = done.returncode == 0 and subprocess.run([folder / "probe"], capture_output=True, check=False).returncode == 0
    return SANITIZED if runs else ("-O2",)


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory, sanitizers: tuple[str, ...]) -> Path:
    return compiled(tmp_path_factory.mktemp("ask"), EXAMPLE / "ask.c", *sanitizers)


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory, sanitizers: tuple[str, ...]) -> Path:
    return compiled(tmp_path_factory.mktemp("driver"), HERE / "c_driver.c", *sanitizers)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run") / "fieldlm.sock"


@pytest.fixture(scope="module")
def server(base_bundle: Bundle, path: Path) -> Iterator[ApiServer]:
    with api_server(base_bundle, context=2048, parallel=1, unix_socket=path) as running:
        yield running


def run(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_example_compiles_as_c99_optimised_and_as_cpp(tmp_path: Path) -> None:
    compiled(tmp_path, EXAMPLE / "ask.c", "-O2")
    (source := tmp_path / "node.cpp").write_text((EXAMPLE / "ask.c").read_text())
    command = ["c++", "-std=c++17", "-Wall", "-Wextra", "-Werror", "-I", EXAMPLE, "-fsyntax-only", source]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_an_answer_comes_whole(server: ApiServer, path: Path, ask: Path) -> None:
    done = run(ask, path, 'Say "hello" and ü 🤖\n\\.', "You answer\tin one short sentence.")
    assert done.returncode == 0, done.stderr
    exchange = server.exchanges[-1]
    assert done.stderr == f"ended: {exchange.outcome}\n"
    assert done.stdout == exchange.answer + "\n" != "\n"
    assert [message["content"] for message in exchange.messages] == [
        "You answer\tin one short sentence.",
        'Say "hello" and ü 🤖\n\\.',
    ]


def test_ctrl_c_cancels_the_answer_and_the_sequence_is_free(server: ApiServer, path: Path, ask: Path) -> None:
    with subprocess.Popen([ask, path, LONG], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.read(1) != b""
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=PATIENCE_S)
        assert child.returncode == 130
        assert said == b"stopped\n"
    deadline_s = time.monotonic() + PATIENCE_S
    while server.exchanges[-1].outcome != "cancelled":
        assert time.monotonic() < deadline_s
        time.sleep(0.01)
    # There is one sequence: who asks next is answered only when it is free.
    assert run(ask, path, "Say hello.").returncode == 0


@pytest.mark.parametrize(
    ("prompt", "error"), [("word " * 5000, "the server answered 400: "), ("x" * (20 << 20), "the server answered 413")]
)
def test_what_the_server_refuses_is_one_line(
    server: ApiServer, tmp_path: Path, sanitizers: tuple[str, ...], prompt: str, error: str
) -> None:
    source = tmp_path / "large.c"
    source.write_text(
        '#define FIELDLM_IMPLEMENTATION\n#include "fieldlm.h"\n'
        "static char prompt[32 << 20];\nstatic fieldlm_answer answer;\n"
        "int main(int count, char **given) {\n"
        "    fieldlm_request request;\n    memset(&request, 0, sizeof request);\n"
        "    if (count < 2 || !fread(prompt, 1, sizeof prompt - 1, stdin)) return 2;\n"
        "    request.prompt = prompt;\n"
        "    if (fieldlm_ask(&answer, given[1], &request, NULL, NULL) != FIELDLM_ERROR) return 1;\n"
        "    puts(answer.error);\n    return 0;\n}\n"
    )
    program = compiled(tmp_path, source, *sanitizers)
    done = subprocess.run(
        [program, server.url.removeprefix("unix:")],
        input=prompt,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(error)
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("place", "error"),
    [("nobody.sock", "no server answers on the socket: No such file"), ("x" * 200, "the socket's path is too long")],
)
def test_no_server_is_one_line(tmp_path: Path, ask: Path, place: str, error: str) -> None:
    done = run(ask, tmp_path / place)
    assert done.returncode == 1
    assert done.stderr.startswith(error)
    assert done.stderr.count("\n") == 1


def test_any_text_is_escaped_as_json_reads_it(driver: Path) -> None:
    draw = random.Random(SEED)
    codes = [*range(1, 0x180), 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFD, 0xFFFF, 0x10000, 0x10FFFF, *map(ord, '"\\/🤖')]
    texts = ["".join(chr(draw.choice(codes)) for _ in range(draw.randrange(60))) for _ in range(scaled(300, most=5000))]
    broken = [bytes(draw.randrange(1, 256) for _ in range(draw.randrange(60))) for _ in range(scaled(300, most=5000))]
    given = b"".join(text + b"\0" for text in [*(text.encode() for text in texts), *broken])
    done = subprocess.run([driver, "escape"], input=given, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    read = [json.loads(b'"' + escaped + b'"') for escaped in done.stdout.split(b"\0")[:-1]]
    assert read[: len(texts)] == texts
    assert len(read) == len(texts) + len(broken)


def read(driver: Path, answers: list[tuple[int, bytes]]) -> list[Result]:
    """Return what the driver makes of answers off the wire, each (cut, bytes)."""
    given = b"".join(b"%d %d\n" % (cut, len(sent)) + sent for cut, sent in answers)
    done = subprocess.run([driver, "read"], input=given, capture_output=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    lines = done.stdout.decode().splitlines()
    assert len(lines) == len(answers)
    parts = [line.split("\t") for line in lines]
    return [(int(said), int(n), *map(json.loads, texts)) for said, n, *texts in parts]  # pyright: ignore[reportReturnType]


@contextmanager
def connected(path: Path) -> Generator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        connection.connect(str(path))
        yield connection


@pytest.fixture(scope="module")
def wire(server: ApiServer, path: Path) -> bytes:
    """What the server sends for a short answer, all of it."""
    asked = {"messages": [{"role": "user", "content": "Say hello."}], "stream": True, "max_tokens": 6}
    body = json.dumps({**asked, "stream_options": {"include_usage": True}}).encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with connected(path) as connection:
        connection.sendall(head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_an_answer_is_read_alike_wherever_it_is_cut_and_never_taken_for_whole(driver: Path, wire: bytes) -> None:
    (whole,) = read(driver, [(0, wire)])
    said, pieces, reason, text, error = whole
    assert (said, error) == (0, "")
    assert reason == "length"
    assert text
    assert pieces > 1
    step = 1 if len(wire) < 4000 else 3
    assert set(read(driver, [(cut, wire) for cut in range(0, len(wire), step)])) == {whole}
    last = wire.index(b"[DONE]") + len(b"[DONE]")
    shortened = read(driver, [(cut // 2, wire[:cut]) for cut in range(0, last, step)])
    assert {(said, bool(error)) for said, _, _, _, error in shortened} == {(-1, True)}


def event(**delta: object) -> bytes:
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": delta}]}).encode() + b"\n\n"


END = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


@pytest.mark.parametrize(
    ("sent", "result"),
    [
        (HEAD + b"\r\n" + event(content='é\t🤖"\\/\0z\n') + END, (0, 1, "stop", 'é\t🤖"\\/', "")),
        (
            b"HTTP/1.1 102 Processing\r\n\r\n" + HEAD + b"\r\n: ping\n\n" + event(content="a") + END,
            (0, 1, "stop", "a", ""),
        ),
        (HEAD + b"\r\n" + event(content="a"), (-1, 1, "", "a", "the answer was cut off")),
        (
            HEAD + b"\r\n" + event(content="a") + b"data: [DONE]\n\n",
            (-1, 1, "", "a", "the answer ended without a reason"),
        ),
        (
            HEAD + b"\r\n" + event(content="a" * 70_000) + END,
            (-1, 0, "", "", "an event is longer than FIELDLM_EVENT_BYTES"),
        ),
        (HEAD + b'\r\ndata: {"choices": [\n\n', (-1, 0, "", "", "an event is no JSON")),
        (HEAD + b"\r\ndata: " + b"[" * 9000 + b"\n\n", (-1, 0, "", "", "an event is no JSON")),
        (
            HEAD + b"\r\n" + event(content="Turn") + b'data: {"error": {"message": "not whole by its\\ndeadline"}}\n\n',
            (-1, 1, "", "Turn", "not whole by its deadline"),
        ),
        (
            b'HTTP/1.1 504 Late\r\ncontent-length: 31\r\n\r\n{"error": {"message": "l\xc3\xa4te"}}',
            (-1, 0, "", "", "the server answered 504: läte"),
        ),
        (b"HTTP/1.1 503 Full\r\ncontent-length: 0\r\n\r\n", (-1, 0, "", "", "the server answered 503")),
        (b"SSH-2.0-OpenSSH_9.2\r\n", (-1, 0, "", "", "what answers on the socket is no HTTP server")),
        (b"", (-1, 0, "", "", "the server went away before the answer was whole")),
        (HEAD + b"transfer-encoding: chunked\r\n\r\nxyz\r\n", (-1, 0, "", "", "a chunk has no length")),
        (HEAD + b"transfer-encoding: chunked\r\n\r\n1\r\nab\r\n", (-1, 0, "", "", "a chunk is longer than it says")),
    ],
)
def test_what_a_server_may_say_is_read(driver: Path, sent: bytes, result: Result) -> None:
    for cut in range(0, min(len(sent), 300), 7):
        assert read(driver, [(cut, sent)]) == [result]


def test_damaged_answers_are_read_to_an_end_without_touching_other_memory(driver: Path, wire: bytes) -> None:
    draw = random.Random(SEED)
    damaged: list[tuple[int, bytes]] = []
    for _ in range(scaled(1500, most=50_000)):
        sent = bytearray(wire)
        for _ in range(draw.randrange(1, 6)):
            at = draw.randrange(len(sent))
            match draw.randrange(3):
                case 0:
                    sent[at] = draw.choice(b'\0"\\{}[]:,u\n\r0f\xf0\xff')
                case 1:
                    del sent[at : at + draw.randrange(1, 40)]
                case _:
                    sent[at:at] = sent[(start := draw.randrange(len(sent))) : start + draw.randrange(1, 40)]
        damaged.append((draw.randrange(len(sent)), bytes(sent)))
    # The driver itself ends with an error where an answer neither ends nor fails, or leaves its socket open.
    results = read(driver, damaged)
    assert all((error == "") == (said == 0) for said, _, _, _, error in results)
