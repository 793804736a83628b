"""What was exported against its source: logits, templates, dialogues, divergence, tasks, and the gates on them."""
