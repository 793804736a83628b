"""Which model answers a request, and how models are listed."""
