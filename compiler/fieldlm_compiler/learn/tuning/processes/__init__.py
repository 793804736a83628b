"""Several processes that tune one adapter: what each of them does, and who starts and watches them."""
