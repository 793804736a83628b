from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldlm.core.errors import EngineError, InputError
from fieldlm.core.signing import load_or_create_key
from fieldlm.engines import Sampling
from fieldlm.engines.llama import LlamaEngine
from fieldlm.formats.bundle import Bundle, write_bundle
from fieldlm.inference.model import Model
from tests.support.material import lora_gguf, tiny_bundle


@pytest.fixture(scope="module")
def model(base_bundle: Bundle) -> Iterator[Model]:
    with Model.open(base_bundle.folder, threads=1, context=512, parallel=2) as opened:
        yield opened


def test_a_question_gets_an_answer_with_its_generation(model: Model) -> None:
    answer = model.chat("Hello", Sampling(max_tokens=40))
    assert answer.text
    assert answer.outcome in ("stop", "length")
    assert answer.generation == model.bundle.generation
    assert answer.timings.completion_tokens == len(answer.tokens)
    assert model.engine.detokenize(answer.tokens) == answer.text


def test_a_stream_adds_up_to_the_answer(model: Model) -> None:
    messages = [{"role": "user", "content": "Hello"}]
    sampling = Sampling(max_tokens=10)
    assert "".join(chunk.text for chunk in model.stream(messages, sampling)) == model.chat(messages, sampling).text


def test_leaving_a_stream_frees_its_sequence(model: Model) -> None:
    for _ in range(5):
        stream = model.stream("Count to a thousand.", Sampling(max_tokens=400))
        next(stream)
        stream.close()
    assert model.chat("Hello", Sampling(max_tokens=1)).timings.completion_tokens == 1
    assert isinstance(model.engine, LlamaEngine)
    assert model.engine.running <= 1


def test_the_adapter_of_a_bundle_is_on(tmp_path: Path, model: Model) -> None:
    bundle = tiny_bundle(tmp_path / "tuned", adapter=lora_gguf(tmp_path / "a.gguf", scale=0.5))
    sampling = Sampling(max_tokens=6)
    with Model.open(bundle, threads=1, context=256, parallel=1) as tuned:
        assert tuned.chat("Hello", sampling).text != model.chat("Hello", sampling).text


def test_a_folder_without_a_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no manifest\.json"):
        Model.open(tmp_path)


def test_a_bundle_with_a_foreign_adapter_is_refused_and_leaves_nothing_behind(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", adapter=lora_gguf(tmp_path / "a.gguf", rows=64))
    with pytest.raises(EngineError, match="belongs to another model"):
        Model.open(bundle, threads=1, context=64, parallel=1)


def test_damaged_weights_that_a_signer_vouched_for_end_in_one_line(tmp_path: Path, base_bundle: Bundle) -> None:
    folder = tmp_path / "b"
    folder.mkdir()
    data = base_bundle.need("base").read_bytes()[:5_000_000]
    (folder / "model.gguf").write_bytes(data)
    bundle = write_bundle(folder, base_bundle.manifest, load_or_create_key(tmp_path / "key.pem"))
    with pytest.raises(EngineError, match=r"is cut off or damaged: tensor .* ends at byte \d+ of 5000000"):
        Model.open(bundle, threads=1, context=64)


def test_damaged_weights_answer_with_an_error(tmp_path: Path) -> None:
    bundle = tiny_bundle(tmp_path / "b", adapter=lora_gguf(tmp_path / "a.gguf", scale=float("nan")))
    with Model.open(bundle, threads=1, context=64, parallel=1) as broken, pytest.raises(EngineError, match="damaged"):
        broken.chat("Hello")
