"""A round holds out the newest, too, where it is asked for it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.formats.profile import Profile
from fieldlm_compiler.learn.curated import read_examples
from fieldlm_compiler.learn.quality.held_out import HeldOutFrom
from fieldlm_compiler.rounds.round import LearningRound
from fieldlm_compiler.rounds.wish import RoundWish
from tests.support.usage import CONSENT, Usage


@pytest.fixture
def wish(profile: Profile, key: Ed25519PrivateKey, tmp_path: Path) -> RoundWish:
    Usage(tmp_path / "store").customers([(f"tea {at}", "order") for at in range(40)], prefix="a", each=1)
    return RoundWish(
        store=str(tmp_path / "store"), base="", profile=profile, out=tmp_path / "rounds", key=key, consents=(CONSENT,)
    )  # fmt: skip


def curated(wish: RoundWish) -> Path:
    return LearningRound(wish)._examples("one store")  # pyright: ignore[reportPrivateUsage]


def test_the_newest_are_held_out_beside_the_share_of_customers(wish: RoundWish) -> None:
    by_time = curated(replace(wish, held_out_from=HeldOutFrom(share=0.5)))
    plain = curated(wish)
    assert by_time != plain, "they are two stages"
    told = [json.loads((folder / "curate.json").read_bytes())["held_out_from"] for folder in (plain, by_time)]
    assert (told[0], type(told[1])) == (None, str)
    newest = {f"a{at}" for at in range(20, 40)}
    held = {example.session for example in read_examples(by_time) if example.split == "eval"}
    trained = {example.session for example in read_examples(by_time) if example.split == "train"}
    assert newest <= held
    assert trained
    assert not newest & trained
    assert newest & {example.session for example in read_examples(plain) if example.split == "train"}
