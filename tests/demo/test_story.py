"""The kiosk story's exam: whose answers are counted."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from fieldlm.core.errors import GateError
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.profile import load_profile
from fieldlm.network.http_client import HttpClient
from fieldlm_compiler.demo.size import StorySize
from fieldlm_compiler.demo.story import Story
from tests.support import material
from tests.support.api_server import api_server


def test_an_exam_counts_only_the_answers_of_the_generation_that_is_examined(
    tmp_path: Path, base_bundle: Bundle
) -> None:
    """A device that went back to the generation before answers as well, and its score is another's."""
    adapter = material.lora_gguf(tmp_path / "lora.gguf", scale=0.05)
    tuned = material.tiny_bundle(tmp_path / "tuned", adapter=adapter)
    story = Story(tmp_path / "demo", load_profile("generic-x86-64"), StorySize(sentences=8, held_out=2))
    with api_server(base_bundle, context=2048) as server:
        vars(story)["machines"] = SimpleNamespace(server=HttpClient(server.url, key=""))
        assert story.examine(base_bundle.folder)["total"] == 2
        with pytest.raises(GateError, match=f"and {tuned.generation} is to be examined"):
            story.examine(tuned.folder)
