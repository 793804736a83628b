"""`fieldlm version` and `completion`: about the command itself."""
