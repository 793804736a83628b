"""Full weights as the search sees them, by their format."""

from pathlib import Path

from fieldlm_compiler.search.weights import GgufWeights, Weights


def open_weights(path: Path) -> Weights:
    """Open the full weights at `path`, a GGUF file or an ONNX graph."""
    if path.suffix == ".onnx":
        from fieldlm_compiler.search.onnx_weights import OnnxWeights

        return OnnxWeights(path)
    return GgufWeights(path)
