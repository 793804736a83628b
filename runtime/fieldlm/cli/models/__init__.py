"""`fieldlm pull`, `list` and `rm`: the models that are here; `ledger`: which of two answered."""
