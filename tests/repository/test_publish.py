"""What a publisher does to a repository, and what is left when it is killed."""

import json
import shutil
import stat
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec
import pytest
from paho.mqtt.client import MQTTMessage
from paho.mqtt.enums import MQTTProtocolVersion
from paho.mqtt.subscribe import simple

from fieldlm.blobs.fetch import FolderSource
from fieldlm.cli.broker import EmbeddedBroker
from fieldlm.core.errors import BundleError, InputError, UnavailableError
from fieldlm.core.files import sha256_bytes
from fieldlm.core.logs import TREE
from fieldlm.formats.bundle import Bundle
from fieldlm.formats.release import Pointer, blob_path, read_index
from fieldlm.formats.topics import release_topic
from fieldlm.updates.trust import Trust
from fieldlm_compiler.repository.publish import announce, main, newest_release, publish
from tests.support.update_simulators import BASE_BYTES, small_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "bundle", adapter="coffee")


@pytest.fixture
def other(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "other", adapter="tea")


def seen_by_a_device(tmp_path: Path, profile: str = "test") -> int:
    """Return the number of the release that a device would take now."""
    trust = Trust(tmp_path / "trust")
    trust.adopt(tmp_path / "keys" / "root.json")
    release = trust.latest(FolderSource(tmp_path / "repository"), profile=profile)
    return release.seq if release else 0


def test_a_release_names_every_byte_of_the_bundle(bundle: Bundle, tmp_path: Path) -> None:
    release = publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys", notes="first")
    assert (release.seq, release.profile, release.bundle, release.notes) == (1, "test", bundle.id, "first")
    for blob in release.blobs:
        data = (tmp_path / "repository" / blob_path(blob.sha256)).read_bytes()
        assert (len(data), sha256_bytes(data)) == (blob.size, blob.sha256)
        index = (tmp_path / "repository" / blob_path(blob.index)).read_bytes() if blob.index else b""
        for chunk in read_index(blob, index):
            assert sha256(data[chunk.start : chunk.start + chunk.size]).digest() == chunk.digest
    assert [file.chunks for file in release.files] == [4, 1, 1]


def test_the_same_bundle_twice_is_one_release(bundle: Bundle, tmp_path: Path) -> None:
    first = publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")
    assert publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys") == first
    assert seen_by_a_device(tmp_path) == 1


def test_numbers_grow_by_profile_and_a_shared_base_is_stored_once(
    bundle: Bundle, other: Bundle, tmp_path: Path
) -> None:
    abroad = small_bundle(tmp_path / "abroad", profile="abroad")
    made = [publish(b.folder, tmp_path / "repository", keys=tmp_path / "keys") for b in (bundle, other, abroad, bundle)]
    assert [(release.profile, release.seq) for release in made] == [
        ("test", 1), ("test", 2), ("abroad", 1), ("test", 3),
    ]  # fmt: skip
    assert (seen_by_a_device(tmp_path), seen_by_a_device(tmp_path, "abroad")) == (3, 1)
    blobs = [path for path in (tmp_path / "repository" / "blobs").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size >= BASE_BYTES for path in blobs) == 1


def test_keys_are_made_once_and_only_their_owner_reads_them(bundle: Bundle, tmp_path: Path) -> None:
    publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")
    pems = {path.name: path.read_bytes() for path in (tmp_path / "keys").glob("*.pem")}
    assert set(pems) == {"root.pem", "targets.pem", "snapshot.pem", "timestamp.pem", "profile-test.pem"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "keys").glob("*.pem")} == {0o600}
    publish(bundle.folder, tmp_path / "another", keys=tmp_path / "keys")
    assert pems == {path.name: path.read_bytes() for path in (tmp_path / "keys").glob("*.pem")}
    tuf = tmp_path / "repository" / "tuf"
    roots = [tuf / "root.json", tuf / "1.root.json", tmp_path / "keys" / "root.json"]
    assert len({path.read_bytes() for path in roots}) == 1


def test_another_publishers_keys_cannot_sign_into_a_repository(bundle: Bundle, other: Bundle, tmp_path: Path) -> None:
    publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")
    with pytest.raises(InputError, match="signed with another root key"):
        publish(other.folder, tmp_path / "repository", keys=tmp_path / "strange")
    assert not (tmp_path / "strange").exists()
    assert seen_by_a_device(tmp_path) == 1


def test_a_bundle_for_another_profile_is_refused_with_the_command_that_helps(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"fieldlm compile MODEL --profile rpi5-8gb"):
        publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys", profile="rpi5-8gb")


def test_a_damaged_bundle_is_not_published(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.folder / "adapter.gguf").write_bytes(b"short")
    with pytest.raises(BundleError, match=r"adapter\.gguf has 5 bytes"):
        publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")


@pytest.mark.parametrize("written", range(4))
def test_a_publisher_killed_between_two_files_leaves_the_release_before(
    bundle: Bundle, other: Bundle, tmp_path: Path, written: int
) -> None:
    repository = tmp_path / "repository"
    publish(bundle.folder, repository, keys=tmp_path / "keys")
    before = (repository / "tuf" / "timestamp.json").read_bytes()
    old = set(repository.rglob("*.json"))
    publish(other.folder, repository, keys=tmp_path / "keys")
    # In the order they are written; the timestamp comes after them all.
    new = sorted(set(repository.rglob("*.json")) - old, key=lambda path: path.stat().st_mtime_ns)
    assert [path.name for path in new] == ["2.json", "2.profile-test.json", "3.snapshot.json"]
    for path in new[written:]:
        path.unlink()
    (repository / "tuf" / "timestamp.json").write_bytes(before)
    assert seen_by_a_device(tmp_path) == 1
    publish(other.folder, repository, keys=tmp_path / "keys")
    assert seen_by_a_device(tmp_path) == 2


def test_a_damaged_blob_in_the_repository_is_mended_by_publishing_again(
    bundle: Bundle, other: Bundle, tmp_path: Path
) -> None:
    release = publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")
    path = tmp_path / "repository" / blob_path(release.files[0].sha256)
    path.unlink()
    path.write_bytes(bytes(BASE_BYTES))
    publish(other.folder, tmp_path / "repository", keys=tmp_path / "keys")
    assert sha256_bytes(path.read_bytes()) == release.files[0].sha256


def test_a_floor_stays_until_it_is_raised(bundle: Bundle, other: Bundle, tmp_path: Path) -> None:
    repository, keys = tmp_path / "repository", tmp_path / "keys"
    publish(bundle.folder, repository, keys=keys)
    assert publish(other.folder, repository, keys=keys, min_seq=2).min_seq == 2
    assert publish(bundle.folder, repository, keys=keys).min_seq == 2
    with pytest.raises(InputError, match="want 0 to 4"):
        publish(other.folder, repository, keys=keys, min_seq=9)


def test_damaged_metadata_is_named(bundle: Bundle, tmp_path: Path) -> None:
    publish(bundle.folder, tmp_path / "repository", keys=tmp_path / "keys")
    (tmp_path / "repository" / "tuf" / "timestamp.json").write_text("{")
    with pytest.raises(BundleError, match=r"timestamp\.json is damaged"):
        newest_release(tmp_path / "repository", "test")


def test_the_command_says_what_it_did(bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(bundle.folder), "--to", str(tmp_path / "repository"), "--keys", str(tmp_path / "keys")]
    assert main(command) == 0
    assert f"now offers {bundle.generation} as release 1 for test" in capsys.readouterr().out
    assert main(command) == 0
    assert f"offers {bundle.generation} already" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bundle"] == bundle.id


@pytest.fixture
def broker() -> Iterator[str]:
    broker = EmbeddedBroker("127.0.0.1", 0)
    broker.start()
    yield broker.url
    broker.stop()


def test_an_announcement_waits_on_the_broker_for_devices_that_come_later(broker: str) -> None:
    topic = release_topic("kiosks", "test")
    announce(Pointer(seq=4, profile="test", repository="https://example.org/m"), broker, topic=topic)
    host, _, port = broker.removeprefix("mqtt://").partition(":")
    message = simple(topic, hostname=host, port=int(port), protocol=MQTTProtocolVersion.MQTTv5)
    assert isinstance(message, MQTTMessage)
    pointer = msgspec.json.decode(message.payload, type=Pointer)
    assert pointer == Pointer(seq=4, profile="test", repository="https://example.org/m")


@pytest.mark.parametrize(("broker_url", "error"), [("mqtt://127.0.0.1:9", UnavailableError), ("http://x", InputError)])
def test_a_broker_that_does_not_take_an_announcement_is_named(broker_url: str, error: type[Exception]) -> None:
    with pytest.raises(error, match=broker_url.removeprefix("mqtt://")):
        announce(Pointer(seq=1, profile="test"), broker_url, topic="fieldlm/1/default/p/test/release")


def test_the_published_folder_can_be_moved(bundle: Bundle, tmp_path: Path) -> None:
    publish(bundle.folder, tmp_path / "first", keys=tmp_path / "keys")
    shutil.move(tmp_path / "first", tmp_path / "repository")
    assert seen_by_a_device(tmp_path) == 1


def test_weights_that_were_held_against_no_source_are_said_to_be(
    bundle: Bundle, tiny_compiled: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert tiny_compiled.manifest.is_held_against_source
    assert not bundle.manifest.is_held_against_source
    caplog.set_level("INFO", TREE.name)
    where = ["--to", str(tmp_path / "repository"), "--keys", str(tmp_path / "keys")]
    for each, is_said in ((tiny_compiled, False), (bundle, True)):
        caplog.clear()
        assert main([str(each.folder), *where]) == 0
        assert ("held against no source model" in caplog.text) is is_said
