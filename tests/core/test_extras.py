"""What a hint tells one to install can be installed: packages by their own names."""

import tomllib
from pathlib import Path

import pytest

from fieldlm.core import extras
from fieldlm.core.extras import install_advice

ROOT = Path(__file__).parents[2]
EXTRAS = [
    (project["name"], extra, lines)
    for path in ("pyproject.toml", "compiler/pyproject.toml")
    for project in [tomllib.loads((ROOT / path).read_text())["project"]]
    for extra, lines in project["optional-dependencies"].items()
    if lines
]


@pytest.mark.parametrize(("distribution", "extra", "lines"), EXTRAS)
def test_a_hint_names_the_packages_that_an_extra_adds(distribution: str, extra: str, lines: list[str]) -> None:
    said = install_advice(distribution, extra)
    assert said == "run: pip install " + " ".join(f"'{line}'" for line in sorted(lines))


def test_of_what_is_not_known_the_extra_is_named() -> None:
    assert install_advice("fieldlm", "llama") == "run: pip install 'fieldlm[llama]'"
    assert install_advice("no-such-package", "x") == "run: pip install 'no-such-package[x]'"


def test_a_debian_package_is_not_told_to_use_a_pip_that_it_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (mark := tmp_path / "cpu-flags").write_text("\n")
    monkeypatch.setattr(extras, "PACKAGE_MARK", mark)
    assert extras.advice("pip install x", "ask your vendor") == "ask your vendor"
    said = install_advice("fieldlm", "onnx")
    assert "the Debian package comes without" in said
    assert "onnxruntime" in said
    assert "pip install" not in said
