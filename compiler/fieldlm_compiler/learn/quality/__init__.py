"""How good labels are that nobody has checked."""
