"""The workshop half of fieldlm: checkpoint to bundle to repository, and records to checkpoint."""
