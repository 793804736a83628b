"""What an attacker, a broken disk or a confused publisher may do to a repository, and that no device takes it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from fieldlm.blobs.fetch import FolderSource
from fieldlm.core.errors import TrustError, UnavailableError
from fieldlm.core.files import sha256_bytes
from fieldlm.formats.bundle import open_bundle
from fieldlm.formats.release import (
    parse_release,
)
from fieldlm.updates.trust import Trust
from fieldlm_compiler.repository.publish import publish
from tests.support.repository_attacks import ATTACKS, BASE_BYTES, Prey
from tests.support.update_simulators import Site, make_site, small_bundle


@pytest.fixture(scope="module")
def prey(tmp_path_factory: pytest.TempPathFactory) -> Prey:
    folder = tmp_path_factory.mktemp("prey")
    bundle = small_bundle(folder / "tuned", base="tuned", base_bytes=BASE_BYTES, adapter="coffee")
    release = publish(bundle.folder, folder / "repository", keys=folder / "keys")
    return Prey(folder / "repository", folder / "keys", bundle, release)


@pytest.fixture
def site(tmp_path: Path, prey: Prey) -> Iterator[Site]:
    """A device of its own, and copies of the prey's repository and keys for it."""
    shutil.copytree(prey.repository, tmp_path / "repository")
    shutil.copytree(prey.keys, tmp_path / "keys")
    site = make_site(tmp_path, small_bundle(tmp_path / "base", base_bytes=BASE_BYTES))
    yield site
    site.slots.close()


def test_there_are_two_hundred_attacks() -> None:
    assert len(ATTACKS) >= 200


@pytest.mark.parametrize("name", ATTACKS)
def test_no_device_takes_a_tampered_repository(site: Site, prey: Prey, name: str) -> None:
    ATTACKS[name](Prey(site.repository, site.keys, prey.bundle, prey.release))
    result = site.update()
    assert result.outcome == "failed"
    assert result.reason in ("trust", "link", "bundle", "profile")
    assert result.detail
    assert site.slots.current().id == site.base.id
    assert site.live.story == []
    assert [folder.name for folder in (site.slots.state / "releases").iterdir()] == [site.base.generation]
    assert not list(site.folder.rglob("escaped"))


def test_the_untouched_repository_is_taken(site: Site, prey: Prey) -> None:
    assert site.update().generation == prey.bundle.generation


def test_metadata_older_than_what_was_seen_is_refused(site: Site) -> None:
    shutil.copytree(site.repository / "tuf", site.folder / "old")
    site.publish(small_bundle(site.folder / "new", base="new", base_bytes=BASE_BYTES))
    site.updater(probe_score=0.0).check_and_update()
    shutil.rmtree(site.repository / "tuf")
    (site.folder / "old").rename(site.repository / "tuf")
    result = site.update()
    assert (result.outcome, result.reason) == ("failed", "trust")


def test_a_mended_repository_is_taken_after_a_tampered_one(site: Site, prey: Prey) -> None:
    path = site.repository / "tuf" / "timestamp.json"
    good = path.read_bytes()
    path.write_bytes(good[:-20])
    assert site.update().outcome == "failed"
    path.write_bytes(good)
    assert site.update().generation == prey.bundle.generation


def test_the_adopted_root_stays_when_the_file_is_gone(site: Site, prey: Prey) -> None:
    site.updater()
    Trust(site.slots.state / "trust").adopt(site.keys / "root.json")
    (site.keys / "root.json").unlink()
    assert site.update().generation == prey.bundle.generation


def test_a_root_that_is_none_is_not_adopted(tmp_path: Path) -> None:
    root = tmp_path / "root.json"
    root.write_text("{}")
    with pytest.raises(TrustError, match="not a TUF root"):
        Trust(tmp_path / "trust").adopt(root)


def test_another_root_makes_a_new_beginning(site: Site) -> None:
    site.update()
    shutil.rmtree(site.repository)
    shutil.rmtree(site.keys)
    first = small_bundle(site.folder / "first", base="first", base_bytes=BASE_BYTES)
    site.publish(first)
    assert site.update().generation == first.generation


def test_a_folder_that_is_no_repository_says_so(site: Site) -> None:
    trust = Trust(site.slots.state / "trust")
    trust.adopt(site.keys / "root.json")
    with pytest.raises(UnavailableError, match=r"tuf/timestamp\.json"):
        trust.latest(FolderSource(site.base.folder), profile="test")


def test_a_published_release_reads_back_as_it_was(prey: Prey) -> None:
    data = prey.release_file().read_bytes()
    assert parse_release(data, what="release") == prey.release
    assert open_bundle(prey.bundle.folder).id == sha256_bytes(prey.blob("manifest").read_bytes())
