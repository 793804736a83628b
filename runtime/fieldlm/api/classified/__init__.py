"""Requests that a bundle's classifier answers in the language model's place."""
