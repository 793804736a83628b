"""Forms that answers are held to, as requests ask for them."""
