"""How fast a bundle is here: repetitions in a process of their own, the roofline, what the profile foresaw."""
