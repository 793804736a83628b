"""Small Llamas with random weights and a small tokenizer, saved as transformers 4 and as transformers 5 do.

The tokenizer is SmolLM2's without all but its first merges: most of the work on a small model is its vocabulary.
"""

import json
import shutil
import warnings
from pathlib import Path
from typing import Any

from fieldlm_compiler.checkpoints.checkpoint import DEFAULT_MODEL, Checkpoint, open_checkpoint

ROPE_THETA = 100_000.0
VOCABULARY = 2048


def smollm2() -> Checkpoint:
    """Return the default model as a checkpoint; made once and kept in the user's cache."""
    return open_checkpoint(DEFAULT_MODEL)


def copy_tokenizer(folder: Path) -> None:
    """Write SmolLM2's chat template and the first `VOCABULARY` tokens of its tokenizer to `folder`."""
    for name in ("tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(smollm2().folder / name, folder / name)
    tokenizer = json.loads((smollm2().folder / "tokenizer.json").read_bytes())
    model = tokenizer["model"]
    model["vocab"] = {text: number for text, number in model["vocab"].items() if number < VOCABULARY}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def tiny_llama(folder: Path, *, hidden: int = 64, seed: int = 0, **config: Any) -> Path:
    """Write a random Llama of two layers to `folder`, as transformers 5 does."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY, "hidden_size": hidden, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 2048,
        "rope_parameters": {"rope_type": "default", "rope_theta": ROPE_THETA}, "tie_word_embeddings": True,
        "initializer_range": 0.1, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "dtype": "float32",
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**shape | config))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # Sharp attention: a wrong rotation must show in the answers.
            if "q_proj" in name or "k_proj" in name:
                weight.mul_(4.0)
    model.save_pretrained(folder)
    copy_tokenizer(folder)
    return folder


def as_transformers_4(folder: Path) -> Path:
    """Rewrite the configuration in `folder` as transformers 4 writes it."""
    path = folder / "config.json"
    config = json.loads(path.read_bytes())
    config["rope_theta"] = config.pop("rope_parameters")["rope_theta"]
    config |= {"rope_scaling": None, "torch_dtype": config.pop("dtype"), "transformers_version": "4.57.6"}
    path.write_text(json.dumps(config))
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"tokenizer_class": "GPT2Tokenizer"}))
    return folder


def tiny_adapter(folder: Path, base: Path, *, seed: int = 1, **config: Any) -> Path:
    """Write a LoRA for the model in `base` with random weights in both halves to `folder`."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    shape: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]}
    with warnings.catch_warnings():
        # peft asks transformers by a name that is going away, and warns of tables that are tied.
        warnings.simplefilter("ignore")
        wanted = LoraConfig(task_type="CAUSAL_LM", **shape | config)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), wanted)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.requires_grad and "lora_" in name and "magnitude" not in name:
                weight.normal_(std=0.2)
            elif weight.requires_grad:
                weight.add_(torch.randn_like(weight), alpha=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.save_pretrained(str(folder))
    return folder


def logits(folder: Path, *, adapter: Path | None = None) -> Any:
    """Return what the model in `folder` thinks of 40 tokens, [tokens, vocabulary], with `adapter` beside it."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if adapter is not None:
            model = PeftModel.from_pretrained(model, str(adapter))
    with torch.inference_mode():
        return model.eval()(input_ids=torch.arange(0, VOCABULARY, 50)[None]).logits[0].numpy()


def conversations(count: int) -> list[dict[str, Any]]:
    """Return `count` orders with their right answers."""
    things = ("tea", "milk", "rice", "soup", "bread", "salt", "fish", "cake")
    return [
        {
            "messages": [
                {"role": "user", "content": f"{1 + number // len(things)} {things[number % len(things)]}"},
                {"role": "assistant", "content": f"{things[number % len(things)]} {1 + number // len(things)}"},
            ]
        }
        for number in range(count)
    ]


def write_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Write `rows` as a `.jsonl` file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def to_tune(folder: Path) -> Path:
    """Make a checkpoint and four examples of yes and no, to learn and held out, in `folder`."""
    tiny_llama(folder / "checkpoint")
    rows = [
        {"messages": [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]}
        for said, answer in (("tea", "yes"), ("bill", "no"), ("cake", "yes"), ("pay", "no"))
    ]
    (folder / "data").mkdir()
    for name in ("train", "eval"):
        write_lines(folder / "data" / f"{name}.jsonl", rows)
    return folder


def teach(folder: Path, rows: list[dict[str, Any]], steps: int = 100, learning_rate: float = 3e-3) -> Path:
    """Train the model in `folder` until it knows some of the answers of `rows` by heart."""
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    tokenizer: Any = PreTrainedTokenizerFast.from_pretrained(folder)
    whole = [tokenizer.apply_chat_template(row["messages"], tokenize=True)["input_ids"] for row in rows]
    asked = [
        tokenizer.apply_chat_template(row["messages"][:-1], tokenize=True, add_generation_prompt=True)["input_ids"]
        for row in rows
    ]
    longest = max(map(len, whole))
    ids = torch.tensor([each + [2] * (longest - len(each)) for each in whole])
    answers = torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, full) in enumerate(zip(asked, whole, strict=True)):
        answers[row, len(prompt) : len(full)] = True
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    for _ in range(steps):
        # The head is most of this model, and only answers are learned.
        thought = model.model(input_ids=ids).last_hidden_state[:, :-1][answers[:, 1:]]
        torch.nn.functional.cross_entropy(model.lm_head(thought), ids[answers]).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    return folder
