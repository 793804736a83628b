"""lm-evaluation-harness, unchanged, against /v1/completions: its figures are those of transformers on the same weights.

Every change sends the requests that it sends, as they were recorded of version 0.4.13; `make deep` installs it.
"""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fieldlm.formats.bundle import Bundle
from tests.support import material, tiny_models
from tests.support.api_server import api_server
from tests.support.depth import DEPTH

VERSION = "0.4.13"
MODEL = "smollm2-135m-instruct"
PAIRS = {
    "hot": "cold", "up": "down", "left": "right", "day": "night", "big": "small", "old": "young", "open": "closed",
    "wet": "dry", "black": "white", "fast": "slow", "early": "late", "full": "empty", "high": "low", "rich": "poor",
    "soft": "hard", "sweet": "bitter", "true": "false", "war": "peace", "push": "pull", "buy": "sell",
    "first": "last", "inside": "outside", "love": "hate", "win": "lose",
}  # fmt: skip
WORDS = list(PAIRS.values())
ROWS: list[dict[str, Any]] = [
    {
        "question": f"The opposite of {word} is",
        "choices": [opposite, *(WORDS[(i + step) % len(WORDS)] for step in (5, 11, 17))],
        "answer": 0,
    }
    for i, (word, opposite) in enumerate(PAIRS.items())
]
TASK = """\
task: opposites
dataset_path: json
dataset_kwargs: {data_files: {test: ROWS}}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list: [{metric: acc}]
"""
# Of log probabilities down to -16: the engine multiplies 4-bit weights with numbers that it rounds to 8 bits.
MOST_APART, MOST_MEAN_APART = 0.6, 0.1
Likelihoods = list[list[float]]


def as_recorded(url: str, folder: Path) -> Likelihoods:
    """Send what lm-eval sends: the tokenizer asked from afar, batches of tokens, an echo with one token more."""
    with httpx.Client(base_url=url, timeout=600) as client:
        told = client.get("/tokenizer_info").json()
        assert "eos_token" in told

        def encode(text: str) -> list[int]:
            return client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]

        found: Likelihoods = []
        for row in ROWS:
            whole = [encode(f"{row['question']} {choice}") for choice in row["choices"]]
            begins = len(encode(row["question"]))
            body = {"model": MODEL, "prompt": whole, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234}
            answer = client.post("/v1/completions", json={**body, "echo": True}).json()
            told_of = [choice["logprobs"] for choice in sorted(answer["choices"], key=lambda one: one["index"])]
            for tokens, logprobs in zip(whole, told_of, strict=True):
                assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(tokens) + 1
            found.append([sum(logprobs["token_logprobs"][begins:-1]) for logprobs in told_of])
        return found


def by_lm_eval(url: str, folder: Path) -> Likelihoods:
    """Have lm-eval itself ask, with a task of its own kind on the same rows."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (folder / "opposites.yaml").write_text(TASK.replace("ROWS", str(rows)))
    program = _installed()
    subprocess.run(
        [
            program, "--model", "local-completions", "--tasks", "opposites", "--include_path", folder,
            "--model_args", f"model={MODEL},base_url={url}/v1/completions,num_concurrent=1,max_retries=1",
            "--batch_size", "4", "--output_path", folder / "out", "--log_samples",
        ],
        check=True, timeout=1800, capture_output=True,
    )  # fmt: skip
    (samples,) = (folder / "out").rglob("samples_*.jsonl")
    told = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda one: one["doc_id"])
    return [[float(reply[0][0]) for reply in sample["resps"]] for sample in told]


def _installed() -> Path:
    folder = material.cache() / f"lm-eval-{VERSION}"
    program = folder / "bin" / "lm_eval"
    if not program.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        subprocess.run([folder / "bin" / "pip", "install", "-q", f"lm-eval[api]=={VERSION}"], check=True)
    return program


@pytest.fixture(scope="module")
def by_transformers() -> Likelihoods:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tiny_models.smollm2().folder
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    def likelihood(question: str, choice: str) -> float:
        begins = len(tokenizer(question, add_special_tokens=False)["input_ids"])
        tokens = torch.tensor([tokenizer(f"{question} {choice}", add_special_tokens=False)["input_ids"]])
        with torch.inference_mode():
            likely = torch.log_softmax(model(tokens).logits[0].double(), -1)
        return sum(float(likely[i - 1, tokens[0, i]]) for i in range(begins, tokens.shape[1]))

    return [[likelihood(row["question"], choice) for choice in row["choices"]] for row in ROWS]


@pytest.fixture(scope="module")
def url(base_bundle: Bundle) -> Iterator[str]:
    with api_server(base_bundle, context=256, parallel=1) as server:
        yield server.url


def right(likelihoods: Likelihoods) -> int:
    return sum(max(range(len(each)), key=each.__getitem__) == 0 for each in likelihoods)


WAYS: list[Callable[[str, Path], Likelihoods]] = [as_recorded, *([by_lm_eval] if DEPTH > 1 else [])]


@pytest.mark.parametrize("evaluated", WAYS)
def test_its_figures_are_those_of_transformers(
    evaluated: Callable[[str, Path], Likelihoods], url: str, by_transformers: Likelihoods, tmp_path: Path
) -> None:
    found = evaluated(url, tmp_path)
    pairs = [pair for both in zip(found, by_transformers, strict=True) for pair in zip(*both, strict=True)]
    apart = [ours - theirs for ours, theirs in pairs]
    most, mean = max(map(abs, apart)), statistics.fmean(apart)
    print(f"right {right(found)} and {right(by_transformers)} of {len(ROWS)}; apart {mean:+.4f}, at most {most:.3f}")
    assert most < MOST_APART
    assert abs(mean) < MOST_MEAN_APART
    # A row may tip where two choices are as likely; one of so many is within the interval by far.
    assert abs(right(found) - right(by_transformers)) <= 1
    assert right(found) > len(ROWS) // 2


def test_the_token_behind_a_prompt_is_told_also_where_an_answer_would_end(url: str) -> None:
    prompt = "<|im_start|>user\nSay hello<|im_end|>\n<|im_start|>assistant\nHello!"
    body = {"prompt": prompt, "temperature": 0, "logit_bias": {"2": 100}, "logprobs": 1, "echo": True}
    tokens = httpx.post(f"{url}/tokenize", json={"prompt": prompt}, timeout=60).json()["tokens"]
    answer = httpx.post(f"{url}/v1/completions", json={**body, "max_tokens": 1}, timeout=60).json()["choices"][0]
    assert len(answer["logprobs"]["token_logprobs"]) == len(tokens) + 1
    assert answer["text"] == prompt
