"""A small Llama whose rows are whole blocks of 256, random at first, trained on a text for a few minutes of CPU."""

import shutil
from pathlib import Path
from typing import Any

from fieldlm_compiler.checkpoints.checkpoint import DEFAULT_MODEL, open_checkpoint
from fieldlm_compiler.checkpoints.tokenizer_parity import json_tokens
from fieldlm_compiler.pipeline.child import Ran, call

WINDOW, BATCH, STEPS = 128, 8, 120
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def train(folder: Path, text: Path) -> Ran:
    """Write the model to `folder`, trained on `text` with the default model's tokenizer."""
    source = open_checkpoint(DEFAULT_MODEL).folder
    for name in FILES:
        shutil.copyfile(source / name, folder / name)
    (tokens,) = json_tokens(source, [text.read_text()])
    return call(train_on, what="train a small model")(
        folder=folder,
        tokens=tokens,
    )


def train_on(folder: Path, tokens: list[int]) -> float:
    """Train on windows of `tokens` drawn at random and return the last loss. Runs in a child process."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "vocab_size": 49152, "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 6,
        "num_attention_heads": 8, "num_key_value_heads": 4, "max_position_embeddings": 2048,
        "tie_word_embeddings": True, "bos_token_id": 1, "eos_token_id": 2, "dtype": "float32",
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(**shape))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=STEPS)
    windows = torch.tensor(tokens[: len(tokens) // WINDOW * WINDOW]).view(-1, WINDOW)
    loss = torch.tensor(0.0)
    for _ in range(STEPS):
        batch = windows[torch.randint(len(windows), (BATCH,))]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    model.save_pretrained(folder)
    return float(loss.detach())
