"""What is proved is what is served: rotations that go by the size of the cache, windows past their length, contexts."""

import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from fieldlm.core.errors import GateError
from fieldlm.engines import EngineOptions, Sampling, open_engine
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile
from fieldlm.inference.chat_template import render
from tests.support import tiny_models
from tests.verify.test_architectures import SHAPE

Build = Callable[..., Bundle]
ORIGINAL, WINDOW = 1024, 600
PAIRS = SHAPE["hidden_size"] // SHAPE["num_attention_heads"] // 2
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 10_000.0, "factor": 16.0, "original_max_position_embeddings": ORIGINAL,
    "short_factor": [1.0 + 0.1 * pair for pair in range(PAIRS)],
    "long_factor": [3.0 + pair for pair in range(PAIRS)],
}  # fmt: skip


def checkpoint(folder: Path, kind: str, **shape: Any) -> Path:
    """Write a random checkpoint with sharp attention: a wrong rotation or window must show in the answers."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SHAPE | shape), dtype=torch.float32)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "qkv_proj" in name:
                weight[: 2 * len(weight) // 3].mul_(4.0)
    model.save_pretrained(folder)
    tiny_models.copy_tokenizer(folder)
    return folder


def worst_gap(folder: Path, tokens: list[int], said: list[int]) -> float:
    """Return how many logits transformers likes another token better than one of `said`, behind `tokens`, at most."""
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([tokens + said])).logits[0, len(tokens) - 1 : -1]
    return float((logits.max(-1).values - logits.gather(1, torch.tensor(said)[:, None])[:, 0]).max())


def served(bundle: Bundle, profile: Profile, tokens: list[int], count: int, **options: Any) -> tuple[list[int], int]:
    """Return what the engine chooses as a device with `profile` serves it, and the context that it serves."""
    asked: dict[str, Any] = {"context": profile.gguf.context, "parallel": profile.runtime.parallel} | options
    engine = open_engine(bundle, EngineOptions(profile=profile, **asked))
    said = [token for chunk in engine.start(tokens, Sampling(max_tokens=count)) for token in chunk.tokens]
    context = engine.context
    engine.close()
    return said, context


@pytest.mark.parametrize("weight", [0.0, 0.25])
def test_a_source_that_says_the_same_whatever_it_is_asked_is_refused(
    weight: float, build: Build, tiny_folder: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_folder, tmp_path / "deaf")
    (path,) = folder.glob("*.safetensors")
    tensors = {name: torch.full_like(each, weight) for name, each in load_file(path).items()}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(GateError, match="what deaf says does not depend on the prompt"):
        build(folder, tmp_path / "bundle", quants=("F16",))
    assert not (tmp_path / "bundle").exists()


@pytest.fixture(scope="module")
def longrope(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("longrope") / "longrope"
    return checkpoint(folder, "phi3", max_position_embeddings=16 * ORIGINAL, rope_parameters=LONGROPE,
                      original_max_position_embeddings=ORIGINAL)  # fmt: skip


def test_a_rotation_that_goes_by_the_size_of_the_cache_is_served_as_the_source_computes_it(
    longrope: Path, build: Build, profile: Profile, tmp_path: Path
) -> None:
    """The profile's four answers of 4,096 tokens would make llama.cpp take the rotation for long texts."""
    bundle = build(longrope, tmp_path / "bundle", quants=("F16",))
    prompt = [1, *range(100, 140)]
    said, context = served(bundle, profile, prompt, 12)
    assert len(said) == 12
    assert worst_gap(longrope, prompt, said) < 0.05
    assert context <= ORIGINAL


def test_a_window_that_the_engine_does_not_know_ends_the_context(
    build: Build, profile: Profile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """llama.cpp has no windows for phi3; the profile serves 4,096 tokens, and no other passage is as long as this."""
    caplog.set_level(logging.INFO, "fieldlm")
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    folder = checkpoint(tmp_path / "windowed", "phi3", sliding_window=WINDOW, rope_parameters=rope)
    bundle = build(folder, tmp_path / "bundle", quants=("F16",))
    assert bundle.manifest.model.context == WINDOW
    assert f"past {WINDOW} tokens the engine computes windowed otherwise than its source" in caplog.text
    _, context = served(bundle, profile, [1, 2, 3], 1)
    assert context == WINDOW, "whoever asks for more"
    assert render(bundle, [{"role": "user", "content": "hello"}])


@pytest.mark.parametrize("window", [WINDOW, WINDOW - 1, 1500])
def test_a_window_that_the_profile_is_too_short_to_read_past_ends_the_context(
    window: int, build: Build, profile: Profile, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """llama.cpp has no windows for phi3, and nothing that is read here is long enough to show it."""
    caplog.set_level(logging.INFO, "fieldlm")
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    folder = checkpoint(tmp_path / "windowed", "phi3", sliding_window=window, rope_parameters=rope)
    short = msgspec.structs.replace(profile, gguf=msgspec.structs.replace(profile.gguf, context=WINDOW))
    bundle = build(folder, tmp_path / "bundle", quants=("F16",), profile=short)
    assert bundle.manifest.model.context == window
    assert f"from {window} tokens on windowed may compute otherwise" in caplog.text
    (gate,) = (gate for gate in bundle.manifest.gates if gate.name == "context-proved")
    assert (gate.value, gate.limit, gate.unit) == (min(WINDOW, window), window, "tokens")
    _, context = served(bundle, short, [1, 2, 3], 1, context=2048)
    assert context == window, "whoever asks for more"


def test_a_window_that_the_engine_knows_is_proved_past_its_length(build: Build, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "gemma", "gemma3_text", head_dim=32, query_pre_attn_scalar=32, sliding_window=WINDOW)
    bundle = build(folder, tmp_path / "bundle", quants=("F16",))
    assert bundle.manifest.model.context == 2048
    gates = {gate.name: gate.value for gate in bundle.manifest.gates}
    assert gates[f"past-{WINDOW}"] <= 1e-4
    assert "context-proved" not in gates
