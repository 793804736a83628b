"""Models that think before they answer: what marks their thoughts, and thoughts parted from answers."""
