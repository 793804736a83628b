"""Wrong inputs of every command: one line on stderr, exit code 2, no traceback, and nothing was begun.

Words in capitals stand for files and folders that the test makes; `new` and MISSING are not there. TAKEN is a port.
"""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Generator
from pathlib import Path

import pytest

from fieldlm.cli.main import COMMANDS, main
from fieldlm_compiler.collect.parquet import Store
from tests.support.tiny_models import conversations, write_lines

# What is typed, and what the line says of it.
WRONG = [
    ("serf", "did you mean 'serve'"),
    ("comple MISSING", "did you mean 'compile'"),
    ("tuen", "did you mean 'tune'"),
    ("--help-me", "there is no command"),
    ("run", "required: MODEL"),
    ("run MISSING hi", "there is no model"),
    ("run smolm2 hi", "did you mean 'smollm2'"),
    ("run hf: hi", "is no hub name"),
    ("run hf:org hi", "is no hub name"),
    ("run pypi: hi", "names no distribution"),
    ("run FOLDER hi", "manifest.json"),
    ("run BINARY hi", "is not a GGUF file"),
    ("run BROKEN hi", "is not a GGUF file"),
    ("run NOTHING hi", "is not a GGUF file"),
    ("run BINARY hi --threads 100000", "--threads"),
    ("run BINARY hi --threads -1", "--threads"),
    ("run BINARY hi --threads 0", "--threads"),
    ("run BINARY hi --threads two", "--threads"),
    ("run BINARY hi --context 99999999", "--context"),
    ("run BINARY hi --context 1", "--context"),
    ("run BINARY hi --temperature -1", "--temperature"),
    ("run BINARY hi --temperature 2.5", "--temperature"),
    ("run BINARY hi --temperature nan", "--temperature"),
    ("run BINARY hi --seed 99999999999999999999", "--seed"),
    ("run BINARY hi --seed -1", "--seed"),
    ("run BINARY hi --max-tokens 0", "--max-tokens"),
    ("run BINARY hi --max-tokens 1.5", "--max-tokens"),
    ("run BINARY hi --temprature 1", "did you mean '--temperature'"),
    ("run BINARY hi there", "unrecognized arguments"),
    ("chat MISSING", "there is no model"),
    ("chat BINARY", "is not a GGUF file"),
    ("chat BINARY --url http://127.0.0.1:1", "not both"),
    ("chat --url ftp://host", "ftp://host"),
    ("chat --url http://", "http://"),
    ("chat --url ::", "::"),
    ("chat FOLDER", "manifest.json"),
    ("chat BINARY --max-tokens 0", "--max-tokens"),
    ("bench", "required: MODEL"),
    ("bench MISSING", "there is no model"),
    ("bench BINARY", "is not a GGUF file"),
    ("bench BINARY --threads 100000", "--threads"),
    ("bench BINARY --repetitions 0", "--repetitions"),
    ("bench BINARY --prompt-tokens x", "--prompt-tokens"),
    ("bench BINARY --gen-tokens -3", "--gen-tokens"),
    ("bench BINARY -p 0 -n 0", "nothing to measure"),
    ("bench BINARY -p 512,", "want a list of whole numbers"),
    ("bench BINARY -t 4-1", "each range rising"),
    ("bench BINARY -d 1-9+0", "--n-depth"),
    ("bench BINARY -b 0", "--batch-size"),
    ("bench BINARY -pg 512", "want a pair of whole numbers"),
    ("bench --url http://127.0.0.1:1 -pg 5,5", "instead of -pg"),
    ("bench BINARY -ub 99999999", "--ubatch-size"),
    ("bench BINARY -ctk q9", "want a list out of f32, f16"),
    ("bench BINARY -fa maybe", "want a list out of on, off, auto"),
    ("bench BINARY -lm tape", "want a list out of none, mmap"),
    ("bench BINARY -o xml", "invalid choice: 'xml'"),
    ("bench BINARY --delay -1", "--delay"),
    ("bench BINARY --report report.pdf", "ends in .html or .md"),
    ("bench BINARY --report FOLDER", "is a folder"),
    ("bench --compare MISSING BINARY", "MISSING"),
    ("bench --compare BINARY", "--compare"),
    ("bench --compare BINARY BROKEN", "is no result of -o json"),
    ("bench --compare NOTHING NOTHING", "has no results"),
    ("bench BINARY --compare BINARY BINARY", "leave BINARY out"),
    ("bench --url ftp://host", "ftp://host"),
    ("bench --url http://127.0.0.1:1 -t 4", "decides on threads"),
    ("bench --url http://127.0.0.1:1 -p 1,2", "one -p and one -n"),
    ("bench --url http://127.0.0.1:1 --concurrency 0", "--concurrency"),
    ("bench --url http://127.0.0.1:1 --rate 0", "--rate"),
    ("bench --url http://127.0.0.1:1 --deadline 0", "--deadline"),
    ("bench --url http://127.0.0.1:1 --minutes 1", "--out go together"),
    ("bench --url http://127.0.0.1:1 --minutes 1 --out FOLDER", "is a folder"),
    ("bench --url http://127.0.0.1:1 --minutes 1 --out new --rate 1", "a soak has one load"),
    ("bench BINARY --concurrency 2", "say which with --url"),
    ("bench --compare BINARY BINARY -o md", "give one of them"),
    ("bench BINARY --seed x", "--seed"),
    ("verify", "required: bundle"),
    ("verify MISSING", "MISSING"),
    ("verify BINARY", "BINARY"),
    ("verify FOLDER", "manifest.json"),
    ("verify FOLDER --profile rpi5-8gb", "--on-device"),
    ("verify BADBUNDLE", "manifest.json"),
    ("serve MISSING --port 0", "MISSING"),
    ("serve BINARY --port 0", "is not a GGUF file"),
    ("serve FOLDER --port 0", "manifest.json"),
    ("serve FOLDER --port -1", "port"),
    ("serve FOLDER --port 65536", "port"),
    ("serve FOLDER --port http", "port"),
    ("serve FOLDER --port TAKEN", "Address already in use; choose another with --port"),
    ("serve FOLDER --port 0 --socket BINARY", "it is no socket; choose another with --socket"),
    ("serve FOLDER --port 0 --socket BINARY/socket", "cannot listen on"),
    ("serve FOLDER --port 0 --tls-cert BINARY --tls-key BINARY", "TLS with"),
    ("serve FOLDER --port 0 --tls-cert BINARY", "TLS needs both"),
    ("serve FOLDER --port 0 --api-keys MISSING", "the keys in"),
    ("serve FOLDER --host 0.0.0.0", "would answer the whole network"),
    ("serve FOLDER --host none", "give --socket"),
    ("serve FOLDER --threads 100000", "threads"),
    ("serve FOLDER --context 5", "context"),
    ("serve FOLDER --spool-mb -1", "spool_mb"),
    ("serve FOLDER --telemetry everything", "telemetry"),
    ("serve FOLDER --port 0 --profile nosuch", "there is no profile"),
    ("profiles raspberry-pi-5", "did you mean rpi5-1gb, rpi5-2gb, rpi5-4gb, rpi5-8gb or rpi5-16gb?"),
    ("profiles pi5", "did you mean rpi5-1gb, rpi5-2gb, rpi5-4gb, rpi5-8gb or rpi5-16gb?"),
    ("logs --url http://127.0.0.1:1", "holds no key of the device at http://127.0.0.1:1; give the --state"),
    ("slots --url http://127.0.0.1:1", "holds no key of the device at http://127.0.0.1:1; give the --state"),
    ("serve FOLDER --port 0 --state BINARY", "BINARY"),
    ("serve FOLDER --broker ftp://x", "broker"),
    ("serve BADBUNDLE MISSING", "manifest.json"),
    ("serve FOLDER --models-mb -1", "models_mb"),
    ("serve FOLDER --sleep-after 1.5", "sleep_after"),
    ("pull", "required: MODEL"),
    ("pull MISSING", "there is no model"),
    ("pull smolm2", "did you mean 'smollm2'"),
    ("pull hf:org/../x", "is no hub name"),
    ("pull pypi:!", "names no distribution"),
    ("rm", "required: MODEL"),
    ("rm smolm2", "smolm2"),
    ("list more", "unrecognized arguments"),
    ("ledger --days 0", "whole number, 1–400"),
    ("ledger --url ftp://kiosk", "not the address of a server"),
    ("serve --large ftp://example.com", "large is 'ftp://example.com' (from --large)"),
    ("serve --large https://example.com/v1 --large-when never", "want unsure, always, asked"),
    ("serve --large https://example.com/v1 --large-below 0", "want 1–100"),
    ("serve --large https://example.com/v1 --large-text some", "want all, redacted, nothing"),
    ("serve --large https://example.com/v1 --large-prompt-price -1", "an amount of money"),
    ("serve --port 0 --large https://example.com/v1 --large-key MISSING", "MISSING cannot be read"),
    ("serve --port 0 --large https://example.com/v1 --large-key FOLDER", "cannot be read"),
    ("serve --large https://example.com/v1 --large-daily-tokens many", "large_daily_tokens is 'many'"),
    ("ps --url nowhere", "nowhere"),
    ("ps --url ftp://x", "ftp://x"),
    ("doctor --profile rpi5-8g", "did you mean"),
    ("doctor --port 99999", "--port"),
    ("doctor --broker ftp://x", "ftp://x"),
    ("config --template xml", "invalid choice"),
    ("detect --sysroot MISSING", "does not exist"),
    ("detect --sysroot BINARY", "is no folder"),
    ("profiles nosuch", "there is no profile"),
    ("profiles rpi5-8g", "did you mean"),
    ("profiles BROKEN", "BROKEN"),
    ("profiles FOLDER", "FOLDER"),
    ("devices --timeout -1", "--timeout"),
    ("devices --timeout 0", "--timeout"),
    ("devices --timeout inf", "--timeout"),
    ("adopt", "required: device"),
    ("adopt http://127.0.0.1:1 --root MISSING", "does not exist"),
    ("adopt http://127.0.0.1:1 --root BINARY", "is not text"),
    ("adopt http://127.0.0.1:1 --owner zz", "--owner"),
    ("adopt ftp://x --code 1", "ftp://x"),
    ("update --state MISSING", "MISSING"),
    ("update --state BINARY", "BINARY"),
    ("update --repository ftp://x --state STATE", "ftp://x"),
    ("update --trust MISSING --state STATE", "MISSING"),
    ("update --url ftp://x", "ftp://x"),
    ("slots --state MISSING", "MISSING"),
    ("slots --state BINARY", "BINARY"),
    ("slots --state FOLDER", "FOLDER"),
    ("slots ftp://x", "ftp://x"),
    ("rollback --state MISSING", "MISSING"),
    ("rollback ftp://x", "ftp://x"),
    ("logs self --lines 0", "--lines"),
    ("logs --state MISSING", "MISSING"),
    ("kiosk", "give a FILE"),
    ("kiosk MISSING", "MISSING cannot be read"),
    ("kiosk FOLDER", "FOLDER cannot be read"),
    ("kiosk BINARY", "BINARY"),
    ("kiosk BROKEN", "BROKEN"),
    ("kiosk POLICY", "POLICY"),
    ("kiosk POLICY --pin", "give a FILE"),
    ("provision MISSING", "MISSING does not exist"),
    ("provision FOLDER --check", "FOLDER"),
    ("provision BINARY", "is not text in UTF-8"),
    ("provision BROKEN --check", "cannot be used"),
    ("provision POLICY", "cannot be used"),
    ("provision NOTHING --root MISSING", "MISSING"),
    ("policy MISSING --out new", "MISSING"),
    ("policy BINARY --out new", "is no policy"),
    ("policy BROKEN --out new", "is no policy"),
    ("policy POLICY --out BINARY/x", "is no folder"),
    ("policy POLICY --out FOLDER", "is a folder"),
    ("policy POLICY --out s3://b/x", "is a URL"),
    ("policy POLICY --publish http://x", "http://x"),
    ("policy POLICY --out new --publish mqtt://x", "not allowed with"),
    ("policy POLICY --key BINARY --out new", "BINARY"),
    ("broker --port 65536", "--port"),
    ("broker --port -1", "--port"),
    ("broker --host nowhere.invalid", "nowhere.invalid"),
    ("version now", "unrecognized arguments"),
    ("completion", "required: shell"),
    ("completion tcl", "invalid choice"),
    ("compile", "required: model"),
    ("compile MISSING", "MISSING"),
    ("compile FOLDER --profile generic-x86-64-avx2", "FOLDER"),
    ("compile BINARY --profile generic-x86-64-avx2", "BINARY"),
    ("compile smollm2 --profile nosuch", "there is no profile"),
    ("compile MISSING --format tflite", "--format"),
    ("compile smollm2 --quant Q9_9 --profile generic-x86-64-avx2", "Q9_9"),
    ("compile MISSING --out BINARY", "is no folder"),
    ("compile MISSING --out s3://b/x", "is a URL"),
    ("compile MISSING --calibration MISSING", "does not exist"),
    ("compile smollm2 --calibration BINARY --profile generic-x86-64-avx2", "is not text"),
    ("compile smollm2 --task BROKEN --profile generic-x86-64-avx2", "is not JSON"),
    ("compile smollm2 --task NOTHING --profile generic-x86-64-avx2", "has no examples"),
    ("compile MISSING --max-kl 0", "--max-kl"),
    ("compile MISSING --max-bundle-mb -5", "--max-bundle-mb"),
    ("compile MISSING --min-task 2", "--min-task"),
    ("compile smollm2 --min-task 0.5 --profile generic-x86-64-avx2", "--task"),
    ("compile MISSING --merge MISSING", "does not exist"),
    ("compile smollm2 --merge FOLDER --quant Q9_9 --profile generic-x86-64-avx2", "Q9_9"),
    ("compile smollm2 --adapter FOLDER --profile generic-x86-64-avx2", "--base-bundle"),
    ("compile smollm2 --keys BINARY --profile generic-x86-64-avx2", "BINARY"),
    ("explain MISSING", "MISSING"),
    ("explain FOLDER", "manifest.json"),
    ("explain BINARY", "BINARY"),
    ("unpack MISSING new", "MISSING"),
    ("unpack FOLDER new", "FOLDER"),
    ("unpack BINARY new", "BINARY"),
    ("unpack smollm2 BINARY", "is no folder"),
    ("unpack smollm2 https://x/y", "is a URL"),
    ("publish --to new", "bundle"),
    ("publish MISSING --to new", "MISSING"),
    ("publish FOLDER --to new", "manifest.json"),
    ("publish BINARY --to new", "BINARY"),
    ("publish FOLDER --to s3://b/x", "is a URL"),
    ("publish FOLDER --to BINARY", "is no folder"),
    ("publish FOLDER --to new --share 101", "--share"),
    ("publish FOLDER --to new --spread -1", "--spread"),
    ("publish FOLDER --to new --shadow 11", "--shadow"),
    ("publish FOLDER --to new --shadow-hours 0", "--shadow-hours"),
    ("publish FOLDER --to new --min-seq -1", "--min-seq"),
    ("publish FOLDER --to new --timestamp-days 0", "--timestamp-days"),
    ("publish FOLDER --to new --announce http://x", "http://x"),
    ("publish FOLDER --to new --refresh", "--refresh"),
    ("publish --refresh --to FOLDER", "FOLDER"),
    ("release show --to MISSING", "does not exist"),
    ("release promote --to FOLDER", "profile"),
    ("release promote rpi5-8gb --to FOLDER", "FOLDER"),
    ("release lift rpi5-8gb --to FOLDER", "invalid choice"),
    ("release promote rpi5-8gb 0 --to FOLDER", "seq"),
    ("release promote rpi5-8gb --share x --to FOLDER", "--share"),
    ("release promote rpi5-8gb --shadow many --to FOLDER", "--shadow"),
    ("keys", "required: what"),
    ("keys make", "invalid choice"),
    ("keys rotate --to FOLDER", "one of"),
    ("keys rotate timestamp", "--to"),
    ("keys rotate timestamp --to FOLDER", "FOLDER"),
    ("keys rotate timestamp --to MISSING", "MISSING"),
    ("keys rotate nosuch --to FOLDER", "is no repository"),
    ("keys revoke abc --to FOLDER", "FOLDER"),
    ("keys create --root 0", "--root"),
    ("keys create --root 2 --threshold 3", "threshold"),
    ("keys show --keys BINARY", "BINARY"),
    ("collect", "required: --store"),
    ("collect --store BINARY", "BINARY"),
    ("collect --store MISSING --show", "MISSING"),
    ("collect --store FOLDER --show", "FOLDER"),
    ("collect --store STORE --query SELEKT", "query"),
    ("collect --store new --broker http://x", "http://x"),
    ("collect --store new --shards 9-1", "9-1"),
    ("collect --store new --shards 0-999", "0-999"),
    ("collect --store s3://b/x", "s3://b/x"),
    ("collect --store kafka:", "kafka:"),
    ("collect --store new --fleet a/b", "a/b"),
    ("curate MISSING --out new", "MISSING"),
    ("curate BINARY --out new", "BINARY"),
    ("curate STORE --out BINARY", "is no folder"),
    ("curate STORE --out new --eval-share 1.5", "--eval-share"),
    ("curate STORE --out new --eval-share 1", "--eval-share"),
    ("cluster MISSING", "MISSING"),
    ("cluster FOLDER", "FOLDER"),
    ("cluster FOLDER --seed -1", "--seed"),
    ("cluster FOLDER --seed 99999999999", "--seed"),
    ("cluster BADEXAMPLES", "BADEXAMPLES"),
    ("dataset MISSING --out new", "MISSING"),
    ("dataset FOLDER --out new", "FOLDER"),
    ("dataset FOLDER --out BINARY", "is no folder"),
    ("dataset BADEXAMPLES --out new", "BADEXAMPLES"),
    ("tasks MISSING", "does not exist"),
    ("tasks FOLDER", "holds neither tasks nor rounds"),
    ("tasks FOLDER --split a --undo", "not allowed with"),
    ("tasks FOLDER --rename a", "expected 2 arguments"),
    ("tainted MISSING FOLDER", "MISSING"),
    ("tainted STORE MISSING", "MISSING"),
    ("tainted STORE BINARY", "BINARY"),
    ("tune MISSING --dataset FOLDER --out new", "does not exist"),
    ("tune FOLDER --dataset MISSING --out new", "does not exist"),
    ("tune FOLDER --dataset FOLDER --out new", "fieldlm dataset"),
    ("tune FOLDER --dataset FOLDER --out BINARY", "is no folder"),
    ("tune FOLDER --dataset FOLDER --out new --rank 0", "--rank"),
    ("tune FOLDER --dataset FOLDER --out new --epochs 0", "--epochs"),
    ("tune FOLDER --dataset FOLDER --out new --batch 0", "--batch"),
    ("tune FOLDER --dataset FOLDER --out new --learning-rate -1", "--learning-rate"),
    ("tune FOLDER --dataset FOLDER --out new --device tpu", "--device"),
    ("tune smollm2 --dataset FOLDER --out new", "fieldlm unpack"),
    ("tune FOLDER --dataset DATASET --out new", "FOLDER"),
    ("tune FOLDER --dataset DATASET --out new --from FOLDER", "is no adapter"),
    ("round", "required: "),
    ("round MISSING --base FOLDER --out new --consent a", "FOLDER"),
    ("round STORE --base MISSING --out new --consent a", "MISSING"),
    ("round STORE --base FOLDER --out new", "--consent"),
    ("round STORE --base FOLDER --out BINARY --consent a", "is no folder"),
    ("round STORE --base FOLDER --out new --consent a --eval-share 0", "--eval-share"),
    ("round STORE --base FOLDER --out new --consent a --from other", "--from"),
    ("round STORE --base FOLDER --out new --consent a --profile nosuch", "nosuch"),
    ("rounds MISSING", "does not exist"),
    ("rounds FOLDER", "has no finished round"),
    ("evaluate MISSING --url http://127.0.0.1:1", "MISSING"),
    ("evaluate BINARY --url http://127.0.0.1:1", "line 1 of"),
    ("evaluate BROKEN --url http://127.0.0.1:1", "line 1 of"),
    ("evaluate NOTHING --url http://127.0.0.1:1", "has no examples"),
    ("evaluate FOLDER --url http://127.0.0.1:1", "FOLDER"),
    ("evaluate LINES --url ftp://x", "ftp://x"),
    ("evaluate LINES --clients 0", "--clients"),
    ("evaluate LINES --at-least 2", "--at-least"),
    ("evaluate LINES --max-tokens 0", "--max-tokens"),
    ("fleet", "required: --store"),
    ("fleet --store MISSING", "MISSING"),
    ("fleet --store BINARY", "BINARY"),
    ("fleet --store STORE nosuch", "nosuch"),
    ("fleet --store STORE --last 0", "--last"),
    ("fleet --store STORE --serve --port -1", "--port"),
    ("fleet --store STORE --since-h -1", "--since-h"),
    ("fleet --store STORE --otlp ftp://x", "ftp://x"),
    ("rollout start", "--to"),
    ("rollout start --to MISSING", "MISSING"),
    ("rollout start --to FOLDER", "FOLDER"),
    ("rollout begin", "invalid choice"),
    ("rollout show --store MISSING", "MISSING"),
    ("rollout show --memory FOLDER", "FOLDER"),
    ("rollout start --every 0 --to FOLDER", "--every"),
    ("rollout start --patience -1 --to FOLDER", "--patience"),
    ("rollout start --shadow 1.5 --to FOLDER", "--shadow"),
    ("rollout start --broker http://x --to FOLDER", "http://x"),
    ("rollout watch --store delta:x", "--memory"),
    ("demo --sentences 0", "--sentences"),
    ("demo --held-out 0", "--held-out"),
    ("demo --epochs 0", "--epochs"),
    ("demo --profile nosuch", "there is no profile"),
    ("demo --folder BINARY", "is no folder"),
    ("demo --folder https://x/y", "is a URL"),
    ("explain FOLDER --out FOLDER", "is a folder"),
    ("rollout start --to https://x/y", "does not exist"),
]
# One of each kind, as a process of its own.
PROCESSES = [
    "serf",
    "run BINARY hi --threads 100000",
    "bench MISSING",
    "serve FOLDER --port 65536",
    "slots --state FOLDER",
    "compile MISSING --calibration MISSING",
    "tune FOLDER --dataset FOLDER --out new --rank 0",
    "cluster FOLDER --seed -1",
    "publish FOLDER --to s3://b/x",
    "evaluate NOTHING --url http://127.0.0.1:1",
    "fleet --store STORE --serve --port -1",
    "rollout show --store MISSING",
]
POLICY = 'fleet = "default"\nversion = 1\n'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a working folder with what can be named wrongly."""
    for name in ("HOME", "XDG_CONFIG_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "home"))
    for name in [name for name in os.environ if name.startswith("FIELDLM_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    for name in ("home", "FOLDER", "STATE", "BADBUNDLE", "BADEXAMPLES", "DATASET"):
        Path(name).mkdir()
    Path("BINARY").write_bytes(bytes(range(255, 127, -1)))
    Path("BROKEN").write_text('{"messages": [')
    Path("NOTHING").write_text("")
    Path("POLICY").write_text(POLICY)
    Path("BADBUNDLE/manifest.json").write_text("[]")
    Path("BADEXAMPLES/examples.jsonl").write_text('{"id": 1}\n')
    write_lines(Path("LINES"), conversations(2))
    for name in ("train.jsonl", "eval.jsonl"):
        write_lines(Path("DATASET", name), conversations(2))
    Store(Path("STORE")).close()
    return tmp_path


@pytest.fixture
def taken() -> Generator[str]:
    """A port that somebody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def contents(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_every_command_is_tried() -> None:
    assert len(WRONG) >= 120
    assert {argv.split()[0] for argv, _ in WRONG} >= set(COMMANDS)


@pytest.mark.parametrize(("argv", "what"), WRONG, ids=[argv for argv, _ in WRONG])
def test_what_is_wrong_is_one_line_and_nothing_was_begun(
    argv: str, what: str, here: Path, taken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before, given = contents(here), argv.replace("TAKEN", taken).split()
    assert main(given) == 2
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"fieldlm {given[0]}: ")
    assert what in line
    assert main([*given, "--json"]) == 2
    said = capsys.readouterr()
    error = json.loads(said.out)["error"]
    assert error["exit_code"] == 2
    assert said.err == f"fieldlm {given[0]}: {error['message']}\n"
    assert contents(here) == before


@pytest.mark.parametrize("argv", PROCESSES)
def test_a_process_says_the_same_and_never_loaded_what_computes(argv: str, here: Path) -> None:
    ran = (
        "import sys; from fieldlm.__main__ import main; rc = main(); "
        "print([name for name in ('torch', 'llama_cpp', 'onnxruntime') if name in sys.modules]); sys.exit(rc)"
    )
    done = subprocess.run([sys.executable, "-c", ran, *argv.split()], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "[]\n"), done.stderr
    assert len(done.stderr.splitlines()) == 1
