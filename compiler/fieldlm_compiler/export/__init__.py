"""From a checkpoint to files that an engine loads, one module a format (GGUF, ONNX), and their quantisers."""
