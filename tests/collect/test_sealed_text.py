"""Text that is sealed as it comes: who has the key reads it and is written down, and nobody else does."""

import json
from pathlib import Path

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from fieldlm.cli.main import main
from fieldlm.core.errors import InputError
from fieldlm.formats import block, topics
from fieldlm_compiler.collect import sealed_text
from fieldlm_compiler.collect.collect import CollectTotals, MqttMessage, take_in
from fieldlm_compiler.collect.open import open_sink
from fieldlm_compiler.collect.sealed_text import VARIABLE, sealer_of
from tests.collect.test_forgetting import blocks, forget, holds, seqs
from tests.support.sink_process import made

SECRET = "my sister's flat in Leith"
TEXTS = "SELECT answer, count(*) AS n FROM records WHERE kind = 'generation' GROUP BY 1"


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """Write a key pair: the private one, which reads, and the public one, which seals."""
    key = X25519PrivateKey.generate()
    private, public = tmp_path / "text.pem", tmp_path / "text.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


def where(kind: str, tmp_path: Path) -> str:
    return str(tmp_path / "store") if kind == "parquet" else f"delta:{tmp_path / 'store'}"


@pytest.mark.parametrize("kind", ["parquet", "delta"])
def test_figures_are_for_all_and_text_is_for_who_has_the_key(
    kind: str, tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    private, public = keys
    place = where(kind, tmp_path)
    with open_sink(place) as sink:
        sealed = sealer_of(public).seal(blocks(made(1, 9, answer=SECRET, prompt=SECRET, duration_ms=5)))
        sink.append(sealed)
        assert not holds(tmp_path / "store", SECRET.encode()), "nor in the journal"
        sink.tidy(finish=True)
        sink.append(blocks(made(10, 11, answer="not sealed", duration_ms=5)))
        assert (seqs(sink), sink.gaps()) == (list(range(1, 12)), [])
        assert sink.query("SELECT sum(duration_ms) AS ms FROM records") == [{"ms": 55}]
        assert {row["answer"]: row["n"] for row in sink.query(TEXTS)} == {"": 9, "not sealed": 2}
    assert not holds(tmp_path / "store", SECRET.encode())
    monkeypatch.setenv(VARIABLE, str(private))
    with open_sink(place, read_only=True) as sink:
        assert {row["answer"]: row["n"] for row in sink.query(TEXTS)} == {SECRET: 9, "not sealed": 2}
    (line,) = [json.loads(line) for line in Path(f"{private}.reads.jsonl").read_text().splitlines()]
    assert (line["store"], line["sql"]) == (place, TEXTS)


def test_a_forgotten_session_loses_its_sealed_text_too(tmp_path: Path, keys: tuple[Path, Path]) -> None:
    with open_sink(str(tmp_path / "store")) as sink:
        sink.append(sealer_of(keys[1]).seal(blocks(made(1, 9, session="s1", answer=SECRET))))
        sink.append(blocks(forget("s1")))
        sink.tidy(finish=True)
        assert not holds(tmp_path / "store", sealed_text.MARK.encode())


def test_a_cell_that_was_moved_or_sealed_for_somebody_else_is_an_error(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (sealed,) = sealer_of(keys[1]).seal(blocks(made(1, 1, answer=SECRET)))
    (record,) = sealed.records()
    with open_sink(str(tmp_path / "store")) as sink:
        sink.append(blocks([record, msgspec.structs.replace(record, seq=2)]))
    monkeypatch.setenv(VARIABLE, str(keys[0]))
    with open_sink(str(tmp_path / "store"), read_only=True) as sink:
        assert sink.query("SELECT answer FROM records WHERE seq = 1") == [{"answer": SECRET}]
        with pytest.raises(InputError, match="was not sealed for"):
            sink.query("SELECT answer FROM records WHERE seq = 2")


def test_large_blocks_are_cut_and_nothing_is_lost(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_text, "MOST_PLAIN_BYTES", 1000)
    cut = sealer_of(keys[1]).seal(blocks(made(1, 9, answer=SECRET * 10)))
    assert len(cut) > 1
    with open_sink(str(tmp_path / "store")) as sink:
        sink.append(cut)
        assert (seqs(sink), sink.gaps()) == (list(range(1, 10)), [])


def test_where_the_reading_cannot_be_written_down_nothing_is_read(
    tmp_path: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_sink(str(tmp_path / "store")) as sink:
        sink.append(sealer_of(keys[1]).seal(blocks(made(1, 1, answer=SECRET))))
    Path(f"{keys[0]}.reads.jsonl").mkdir()
    monkeypatch.setenv(VARIABLE, str(keys[0]))
    with open_sink(str(tmp_path / "store"), read_only=True) as sink, pytest.raises(Exception, match=r"reads\.jsonl"):
        sink.query(TEXTS)


def test_a_collector_seals_what_comes_and_the_command_takes_a_key(
    tmp_path: Path, keys: tuple[Path, Path], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    message = MqttMessage(topics.block_topic("default", "kiosk-1", "gen"), block.encode(made(1, 3, answer=SECRET)))
    totals = CollectTotals()
    with open_sink(str(tmp_path / "store")) as sink:
        take_in(sink, "default", [message], totals, sealer_of(keys[1]))
        assert (totals.refused, totals.last_refusal, seqs(sink)) == (0, "", [1, 2, 3])
    assert not holds(tmp_path / "store", SECRET.encode())
    (tmp_path / "no.pem").write_text("nothing")
    assert main(["collect", "--store", str(tmp_path / "store"), "--seal-text", str(tmp_path / "no.pem")]) == 2
    assert "openssl genpkey -algorithm X25519" in capsys.readouterr().err
    monkeypatch.setenv(VARIABLE, str(keys[1]))
    assert main(["collect", "--store", str(tmp_path / "store"), "--query", "SELECT 1"]) == 2
