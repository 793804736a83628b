"""The sequences of one llama.cpp context: what each holds and computes, and whose bits hang on what is beside it."""
