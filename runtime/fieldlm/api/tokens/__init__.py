"""Tokens of texts and texts of tokens, as llama.cpp's server and vLLM tell them."""
