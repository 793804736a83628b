"""Checkpoints and PEFT adapters: open, fetch, dequantise, merge, hold their tokenizer against the device's."""
