"""What a step of tuning computes, and how a run goes on after an interruption."""
