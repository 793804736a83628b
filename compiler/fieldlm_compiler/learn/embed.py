"""Sentence embeddings on a CPU: MiniLM's reading of a sentence beside its words. No network of its own, no GPU.

`wordllama` (MIT) ships 256 numbers for each of Llama 2's 32,000 tokens. Its own loader looks for the tokenizer in the
wrong folder, and its wheel is for one Python only; the two files are the same in every wheel, so they are taken out of
one of them, checked, and kept in the cache. Where MiniLM (minilm.py) cannot be had, words are all there is.

Equal texts are read once. MiniLM reads up to MOST_READ of them; what it would say of the rest is foretold from their
words by a regression (ridge) on those that it read.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldlm.core.errors import UnavailableError
from fieldlm.core.logs import logger
from fieldlm.core.terminal import progress
from fieldlm_compiler.learn import wheels
from fieldlm_compiler.learn.minilm import SIZE as SENTENCE_SIZE
from fieldlm_compiler.learn.minilm import UNKNOWN, MiniLM
from fieldlm_compiler.learn.shapes import spelling

log = logger(__name__)
Vectors = npt.NDArray[np.float32]
Tokens = list[npt.NDArray[np.int64]]
WHEEL = wheels.PinnedWheel(
    "wordllama==0.4.0.post1",
    {
        "vectors.safetensors": (
            "wordllama/weights/l2_supercat_256.safetensors",
            "64b47a2dc493cb8e85944076601189739852d7b64e0e1eedcb1937a251cd9fd5",
        ),
        "tokenizer.json": (
            "wordllama/tokenizers/l2_supercat_tokenizer_config.json",
            "93248f2a9ec36c7b35f700a033d5f36228aae48db61aee31007fa49062cdeb68",
        ),
    },
    # Any machine may take this wheel: nothing in it is run.
    ("--only-binary=:all:", "--platform=manylinux2014_x86_64", "--python-version=3.11", "--abi=cp311"),
)
MOST_READ = 12_000
WORDS_SHARE = 0.3
"""Length of the words' vector beside the sentence's."""
MOST_UNKNOWN = 0.15
"""Share of a text's tokens that the sentence model may not know; beyond that, words are all that is told."""
_BAG = 2000
_RIDGE = 3.0
_CHUNK = 8192


class WordVectors:
    """Static word vectors and their tokenizer, loaded."""

    size = 256

    def __init__(self, folder: Path | None = None) -> None:
        """Load from `folder`, by default the cache, which is filled at the first call."""
        from safetensors.numpy import load_file
        from tokenizers import Tokenizer

        folder = folder or wheels.fetch(WHEEL)
        self._vectors: Vectors = load_file(folder / "vectors.safetensors")["embedding.weight"].astype(np.float32)
        self._tokenizer: Any = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Return one row of length 1 per text; tokens that nearly every text has count little."""
        # An empty list makes an array of floats, and those index nothing.
        encoded = [
            np.unique(np.array(e.ids, dtype=np.int64))
            for start in range(0, len(texts), _CHUNK)
            for e in self._tokenizer.encode_batch(list(texts[start : start + _CHUNK]), add_special_tokens=False)
        ]
        counts = np.bincount(np.concatenate(encoded), minlength=len(self._vectors))
        # Smooth inverse frequency: "please" and "can i have" say little about what is asked for.
        weights = (1.0 / (0.05 + counts / max(1, len(texts)))).astype(np.float32)
        rows = np.zeros((len(texts), self.size), np.float32)
        for row, ids in enumerate(encoded):
            if len(ids):
                rows[row] = weights[ids] @ self._vectors[ids]
        return unit(rows)


class Embedder:
    """What is said as a vector: the sentence's, where its model can be had, beside its words'."""

    def __init__(self, *, words: WordVectors | None = None, sentences: MiniLM | None = None) -> None:
        """Load both models, by default from the cache, which is filled at the first call."""
        self._words = words or WordVectors()
        self._sentences = sentences
        if sentences is None:
            try:
                self._sentences = MiniLM()
            except UnavailableError as error:
                log.warning(f"! tasks are found by words alone, which is less exact: {error}")
        self.size = self._words.size + (SENTENCE_SIZE if self._sentences else 0)

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Return one row of `size` numbers and length 1 per text. The same texts give the same rows."""
        places: dict[str, int] = {}
        rows = [places.setdefault(spelling(text), len(places)) for text in texts]
        distinct = list(places)
        words = self._words(distinct)
        if self._sentences is None:
            return words[rows]
        tokens = self._sentences.tokens(distinct)
        read = self._read(self._sentences, tokens, words)
        # Of a script that the model does not know it would say the same whatever stands there.
        read[[float((ids == UNKNOWN).mean()) > MOST_UNKNOWN for ids in tokens]] = 0.0
        found = np.empty((len(distinct), self.size), np.float32)
        found[:, : read.shape[1]] = read
        np.multiply(words, WORDS_SHARE, out=found[:, read.shape[1] :])
        # Of 100,000 requests each of these is a hundred megabytes or more.
        del read, words, tokens
        return unit(found) if len(rows) == len(found) else unit(found)[rows]

    def _read(self, model: MiniLM, tokens: Tokens, words: Vectors) -> Vectors:
        weights = model.weights(tokens)
        chosen = np.sort(np.random.default_rng(0).permutation(len(tokens))[:MOST_READ])
        with progress("read sentences", len(chosen)) as told:
            read = model([tokens[int(row)] for row in chosen], weights, told)
        if len(chosen) == len(tokens):
            return read
        found = _Foretold(tokens, weights, words, chosen, read)()
        found[chosen] = read
        return found


class _Foretold:
    """A ridge regression from a text's frequent tokens and its words' vector to its sentence's vector."""

    def __init__(self, tokens: Tokens, weights: Vectors, words: Vectors, chosen: npt.NDArray[Any], read: Vectors):
        counts = np.bincount(np.concatenate([np.unique(tokens[int(row)]) for row in chosen]), minlength=len(weights))
        frequent = np.argsort(-counts, kind="stable")[:_BAG]
        self._place = np.full(len(weights), -1)
        self._place[frequent] = np.arange(len(frequent))
        self._bag, self._tokens, self._weights, self._words = len(frequent), tokens, weights, words
        size = len(frequent) + words.shape[1]
        gram, product = np.zeros((size, size), np.float32), np.zeros((size, read.shape[1]), np.float32)
        for start in range(0, len(chosen), _CHUNK):
            features = self._features(chosen[start : start + _CHUNK])
            gram += features.T @ features
            product += features.T @ read[start : start + _CHUNK]
        gram[np.diag_indices(size)] += _RIDGE
        self._map = np.linalg.solve(gram, product)

    def __call__(self) -> Vectors:
        """Return what is foretold of all texts, as rows of length 1."""
        found = np.empty((len(self._tokens), self._map.shape[1]), np.float32)
        for start in range(0, len(found), _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, len(found)))
            found[rows] = self._features(rows) @ self._map
        return unit(found)

    def _features(self, rows: npt.NDArray[Any]) -> Vectors:
        bag = np.zeros((len(rows), self._bag), np.float32)
        for place, row in enumerate(rows):
            ids = self._tokens[int(row)]
            held = ids[self._place[ids] >= 0]
            bag[place, self._place[held]] = self._weights[held]
        bag /= np.maximum(np.linalg.norm(bag, axis=1, keepdims=True), 1e-9)
        return np.hstack([bag, self._words[rows]])


def unit(rows: Vectors) -> Vectors:
    """Scale the rows to length 1, in place, and return them; empty rows stay empty."""
    rows /= np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows)), 1e-9)[:, None]
    return rows
