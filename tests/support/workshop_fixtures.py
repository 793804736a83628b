"""Small models, made once for all tests of the compiler, and one folder of finished stages that they share."""

from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import Profile, load_profile
from fieldlm_compiler.checkpoints.checkpoint import Checkpoint, open_checkpoint
from fieldlm_compiler.compile.build import compile_model
from fieldlm_compiler.pipeline.stages import Stages
from tests.support import tiny_models


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """Return where finished stages lie, by their content: one folder for all workers of a run; a lock guards each."""
    if not hasattr(request.config, "workerinput"):
        return tmp_path_factory.mktemp("compile")
    folder = tmp_path_factory.getbasetemp().parent / "compile"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def stages(work: Path) -> Stages:
    return Stages(work)


@pytest.fixture(scope="session")
def profile() -> Profile:
    return load_profile("generic-x86-64-avx2")


@pytest.fixture(scope="session")
def key() -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.tiny_llama(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path) -> Checkpoint:
    return open_checkpoint(str(tiny_folder))


@pytest.fixture(scope="session")
def build(work: Path, profile: Profile, key: Ed25519PrivateKey) -> Callable[..., Bundle]:
    """Compile as the command does, with the stages of all tests."""

    def compiled(model: Path, out: Path, **options: Any) -> Bundle:
        bound: dict[str, Any] = {"profile": profile, "key": key, "work": work}
        return compile_model(str(model), out=out, **bound | options)

    return compiled


@pytest.fixture(scope="session")
def tiny_compiled(tiny_folder: Path, build: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return build(tiny_folder, tmp_path_factory.mktemp("bundles") / "base", quants=("Q8_0", "Q4_0"))


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics)[:6])[:20_000])
    return path
