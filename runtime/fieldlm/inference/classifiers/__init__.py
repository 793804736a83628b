"""Answers of closed sets, given without the language model where a bundle's classifier is sure."""
