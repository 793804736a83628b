"""Anthropic's Messages API: for agents that speak nothing else."""
