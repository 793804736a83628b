"""The reference model: the source's own logits in 32 bits, by transformers. Runs in a child process.

It reads each answer in one pass instead of saying its own token by token: the same judgement, in a tenth of the time.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fieldlm_compiler.checkpoints.tokenizer_parity import json_tokens

STOP = -1
CERTAIN = 0.0
DEAF_NATS = 1e-5
"""What the source thinks after two prompts is the same where no token's log probability differs by more."""


def judge(  # noqa: PLR0917  (called by name)
    checkpoint: Path,
    adapter: Path | None,
    texts: list[str],
    answers: list[list[int]],
    stops: list[int],
    passages: list[tuple[list[int], list[int]]],
    logits: Path | None,
    rounding: float,
) -> dict[str, Any]:
    """Return each token of `answers` to `texts` that the source would not have said, and how it reads `passages`.

    A passage is tokens that are given and tokens that are read; `logits` is the .npy file with what the artefact thinks
    of each token read, [tokens, vocabulary]. `read` has for each passage its `tokens`, the sum `kl` of the artefact's
    divergences from the source in nats, and the `partings`: tokens for which both like another best, by `rounding`
    logits of the source or more. `is_deaf` says that the source thinks the same whatever it is asked.
    """
    import torch
    from tokenizers import Tokenizer

    model = _open(checkpoint, adapter)
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    found: list[dict[str, Any]] = []
    thoughts: dict[tuple[int, ...], Any] = {}
    with torch.inference_mode():
        prompts = json_tokens(checkpoint, texts)
        for index, (prompt, answer) in enumerate(zip(prompts, answers, strict=True)):
            said = [token for token in answer if token != STOP]
            thought = _logits(model, prompt, said, last=True)
            thoughts[tuple(prompt)] = torch.log_softmax(thought[0], -1)
            found += [{"prompt": index} | doubt for doubt in _doubts(thought, answer, stops, tokenizer)]
        read = _compare(model, passages, logits, rounding) if logits else []
    return {"doubts": found, "read": read, "is_deaf": _is_deaf([*thoughts.values()])}


def _is_deaf(thoughts: Sequence[Any]) -> bool:
    """Say whether all log probabilities of the next token, after prompts that differ, are the same."""
    apart = [float((each - thoughts[0]).abs().max()) for each in thoughts[1:]]
    return bool(apart) and all(each <= DEAF_NATS for each in apart)


def _open(checkpoint: Path, adapter: Path | None) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, adapter).eval()


def _logits(model: Any, given: Sequence[int], read: Sequence[int], *, last: bool = False) -> Any:
    """Return what `model` thinks of each token of `read`, and with `last` of the one behind them."""
    import torch

    # Logits of a long text would be larger than the model.
    logits = model(input_ids=torch.tensor([[*given, *read]]), logits_to_keep=len(read) + 1).logits[0]
    return logits if last else logits[:-1]


def _compare(
    model: Any, passages: Sequence[tuple[list[int], list[int]]], logits: Path, rounding: float
) -> list[dict[str, float]]:
    import numpy as np
    import torch

    artefact, at = np.load(logits, mmap_mode="r"), 0
    found: list[dict[str, float]] = []
    for given, read in passages:
        ours = _logits(model, given, read)
        theirs = torch.from_numpy(np.array(artefact[at : at + len(read)]))[:, : ours.shape[1]]
        at += len(read)
        one, other = torch.log_softmax(ours, -1), torch.log_softmax(theirs, -1)
        chosen = ours.gather(1, theirs.argmax(-1, keepdim=True))[:, 0]
        found.append(
            {
                "tokens": len(read),
                "kl": float(torch.sum(one.exp() * (one - other), -1).sum()),
                "partings": int((ours.max(-1).values - chosen >= rounding).sum()),
            }
        )
    return found


def _doubts(logits: Any, answer: list[int], stops: list[int], tokenizer: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for at, token in enumerate(answer):
        best = int(logits[at].argmax())
        # Any token that ends an answer is as good as another.
        allowed = stops if token == STOP else [token]
        gap = float(logits[at].max() - logits[at][allowed].max())
        if gap > CERTAIN:
            names = {"source": _word(tokenizer, best), "artefact": _word(tokenizer, token)}
            found.append({"at": at, **names, "gap": gap})
    return found


def _word(tokenizer: Any, token: int) -> str:
    return "the end" if token == STOP else f"{tokenizer.decode([token], skip_special_tokens=False)!r} ({token})"
