"""Rules of structured output: what of JSON Schema is honoured, in which words, within which bounds."""
