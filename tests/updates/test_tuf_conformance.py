"""The scenarios of TUF's conformance suite, played against the client that devices use, each under the suite's name.

`tuf_client.py` runs the suite itself. What of it does not apply here:
- test_artifact_cache: a release file is read once and then gone; the specification asks for no cache.
- test_keytype_and_scheme for rsa and ecdsa, test_static_repository, test_faketime, test_expired_local_*: other makers'
  keys, repositories and clocks; `tuf_client.py` runs them, our keys are Ed25519.
- test_unusual_role_name, test_cached_role_is_verified_against_current_delegator: one role per profile, with a checked
  name, delegated to by `targets` alone; `tuf_client.py` runs them.
"""

# pyright: reportPrivateImportUsage=false

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, MetaFile

from fieldlm.core.errors import TrustError
from tests.support.tuf_repository import TOP, Client, Repository


@pytest.fixture
def repository() -> Repository:
    return Repository()


@pytest.fixture
def client(tmp_path: Path, repository: Repository) -> Client:
    return Client(tmp_path, repository)


def edit(data: bytes, change: Callable[[Any], object]) -> bytes:
    document = json.loads(data)
    change(document)
    return json.dumps(document).encode()


def without_version(document: Any) -> None:
    del document["signed"]["version"]


def with_another_signature(document: Any) -> None:
    document["signatures"][0]["sig"] = "00" * 64


def test_basic_refresh_requests(client: Client, repository: Repository) -> None:
    assert client.refresh()
    assert repository.asked == ["2.root", "timestamp", "1.snapshot", "1.targets"]


def test_basic_refresh_trusted_data(client: Client, repository: Repository) -> None:
    assert client.refresh()
    for role in TOP:
        assert (client.trust.metadata / f"{role}.json").read_bytes() == repository.published[role][-1]


def test_implicit_refresh(client: Client, repository: Repository) -> None:
    assert client.download("nonexistent") is None
    assert repository.asked == ["2.root", "timestamp", "1.snapshot", "1.targets"]


@pytest.mark.parametrize(
    "change",
    [without_version, with_another_signature],
    ids=["test_invalid_initial_root", "test_unsigned_initial_root"],
)
def test_initial_root(client: Client, repository: Repository, change: Callable[[Any], object]) -> None:
    client.init(edit(repository.published["root"][0], change))
    assert not client.refresh()
    assert repository.asked == []


@pytest.mark.parametrize(
    ("role", "trusted"),
    [("root", (1, 0, 0, 0)), ("timestamp", (2, 0, 0, 0)), ("snapshot", (2, 2, 0, 0)), ("targets", (2, 2, 2, 0))],
)
def test_unsigned_metadata(client: Client, repository: Repository, role: str, trusted: tuple[int, ...]) -> None:
    repository.signers[role].clear()
    repository.publish("root", "targets", "snapshot", "timestamp")
    assert not client.refresh()
    assert client.versions == trusted


@pytest.mark.parametrize(
    ("role", "trusted"), [("root", (1, 0, 0, 0)), ("snapshot", (2, 2, 0, 0)), ("targets", (2, 2, 2, 0))]
)
def test_url_and_metadata_version_mismatch(
    client: Client, repository: Repository, role: str, trusted: tuple[int, ...]
) -> None:
    repository.publish("root", "targets", "snapshot", "timestamp")
    signed = Metadata[Any].from_bytes(repository.published[role][-1])
    signed.signed.version += 1
    signed.sign(repository.signers[role][0])
    repository.published[role][-1] = signed.to_bytes()
    assert not client.refresh()
    assert client.versions == trusted


def test_timestamp_content_changes(client: Client, repository: Repository) -> None:
    assert client.refresh()
    repository.timestamp.snapshot_meta.version = 100
    repository.republish("timestamp", 1)
    assert client.refresh()
    assert repository.asked[-1] == "timestamp"
    assert client.versions == (1, 1, 1, 1)


def test_basic_metadata_hash_support(client: Client, repository: Repository) -> None:
    repository.has_hashes = True
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh()


@pytest.mark.parametrize(("role", "trusted"), [("targets", (1, 3, 3, 2)), ("snapshot", (1, 3, 2, 2))])
def test_hash_mismatch(client: Client, repository: Repository, role: str, trusted: tuple[int, ...]) -> None:
    repository.has_hashes = True
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh()
    repository.publish("targets")
    if role == "targets":
        repository.snapshot.meta["targets.json"].hashes = {"sha256": "0" * 64}
    repository.publish("snapshot")
    if role == "snapshot":
        repository.timestamp.snapshot_meta.hashes = {"sha256": "0" * 64}
    repository.publish("timestamp")
    assert not client.refresh()
    assert client.versions == trusted


def test_metadata_bytes_match(client: Client, repository: Repository) -> None:
    repository.published["timestamp"][-1] += b" "
    assert client.refresh()
    assert (client.trust.metadata / "timestamp.json").read_bytes() == repository.published["timestamp"][-1]


def test_custom_fields(client: Client, repository: Repository) -> None:
    repository.root.unrecognized_fields["custom-field"] = "value"
    repository.root.roles["root"].unrecognized_fields["another-field"] = "value"
    repository.publish("root")
    assert client.refresh()
    assert client.version("root") == 2


@pytest.mark.parametrize(("role", "trusted"), [("snapshot", (1, 2, 1, 1)), ("targets", (1, 2, 2, 1))])
def test_404(client: Client, repository: Repository, role: str, trusted: tuple[int, ...]) -> None:
    assert client.refresh()
    if role == "targets":
        repository.snapshot.meta["targets.json"].version += 1
        repository.publish("snapshot")
    else:
        repository.timestamp.snapshot_meta.version += 1
    repository.publish("timestamp")
    assert not client.refresh()
    assert repository.asked[-1] == f"2.{role}"
    assert client.versions == trusted


def test_timestamp_404(client: Client, repository: Repository) -> None:
    assert client.refresh()
    del repository.published["timestamp"]
    assert not client.refresh()


def test_incorrect_metadata_type(client: Client, repository: Repository) -> None:
    repository.add_key("snapshot", repository.signers["timestamp"][0])
    repository.snapshot.meta = {"snapshot.json": MetaFile(1)}
    repository.publish("root", "snapshot")
    repository.published["timestamp"].append(repository.published["snapshot"].pop())
    assert not client.refresh()
    assert client.versions == (2, 0, 0, 0)


@pytest.mark.parametrize(
    ("role", "trusted"),
    [("root", (3, 1, 1, 1)), ("timestamp", (1, 1, 1, 1)), ("snapshot", (1, 2, 1, 1)), ("targets", (1, 2, 2, 1))],
)
def test_expired(client: Client, repository: Repository, role: str, trusted: tuple[int, ...]) -> None:
    assert client.refresh()
    if role == "root":
        repository.publish("root")
        assert client.refresh()
    repository.signed[role].expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=5)
    repository.publish(*dict.fromkeys((role, "targets", "snapshot", "timestamp")))
    assert not client.refresh()
    assert client.versions == trusted


def test_snapshot_does_not_meet_threshold(client: Client, repository: Repository) -> None:
    repository.add_key("snapshot")
    repository.add_key("snapshot")
    repository.root.roles["snapshot"].threshold = 3
    repository.publish("root", "snapshot", "timestamp")
    assert client.refresh()
    repository.signers["snapshot"].pop()
    repository.publish("snapshot", "timestamp")
    assert not client.refresh()
    assert client.version("snapshot") == 2


def test_snapshot_has_too_few_keys(client: Client, repository: Repository) -> None:
    for _ in range(4):
        repository.add_key("snapshot")
    repository.root.roles["snapshot"].threshold = 6
    repository.publish("root", "snapshot", "timestamp")
    assert not client.refresh()
    assert (client.version("root"), client.version("snapshot")) == (2, 0)


def test_duplicate_keys(client: Client, repository: Repository) -> None:
    repository.root.roles["snapshot"].threshold = 2
    repository.publish("root", "snapshot", "timestamp")
    data = repository.published["snapshot"][-1]
    repository.published["snapshot"][-1] = edit(data, lambda d: d["signatures"].append(d["signatures"][0]))
    assert not client.refresh()
    assert client.version("snapshot") == 0


def test_duplicate_sig_keyids(client: Client, repository: Repository) -> None:
    data = repository.published["snapshot"][-1]
    repository.published["snapshot"][-1] = edit(data, lambda d: d["signatures"].append(d["signatures"][0]))
    assert not client.refresh()
    assert client.version("snapshot") == 0


@pytest.mark.parametrize("signature", ["00" * 64, ""])
def test_invalid_sig_in_valid_metadata(client: Client, repository: Repository, signature: str) -> None:
    repository.add_key("timestamp")
    repository.publish("root", "timestamp")
    data = repository.published["timestamp"][-1]
    repository.published["timestamp"][-1] = edit(data, lambda d: d["signatures"][0].update(sig=signature))
    assert client.refresh()


def test_new_timestamp_version_rollback(client: Client, repository: Repository) -> None:
    repository.publish("timestamp")
    assert client.refresh()
    repository.republish("timestamp", 1)
    assert not client.refresh()
    assert client.version("timestamp") == 2


@pytest.mark.parametrize("has_hashes", [False, True])
@pytest.mark.parametrize(("role", "rest"), [("snapshot", ()), ("targets", ("snapshot",))])
def test_rollback(client: Client, repository: Repository, role: str, rest: tuple[str, ...], has_hashes: bool) -> None:
    repository.has_hashes = has_hashes
    repository.publish("targets", "snapshot", "timestamp")
    assert client.refresh()
    repository.republish(role, 1, *rest, "timestamp")
    assert not client.refresh()
    assert client.version(role) == 2


def test_targets_role_removal(client: Client, repository: Repository) -> None:
    repository.delegate("targets", "delegated", "delegatedpath/*")
    repository.publish("delegated", "targets", "snapshot", "timestamp")
    assert client.refresh()
    del repository.snapshot.meta["delegated.json"]
    repository.publish("snapshot", "timestamp")
    assert not client.refresh()
    assert client.version("snapshot") == 2


@pytest.mark.parametrize(
    ("role", "rotated", "rest"),
    [
        ("targets", ("snapshot",), ("snapshot", "timestamp")),
        ("snapshot", ("snapshot", "timestamp"), ("timestamp",)),
        ("timestamp", ("timestamp",), ()),
    ],
)
def test_fast_forward_recovery(
    client: Client, repository: Repository, role: str, rotated: tuple[str, ...], rest: tuple[str, ...]
) -> None:
    repository.publish(*[role] * 99, *rest)
    assert client.refresh()
    assert client.version(role) == 100
    for online in rotated:
        repository.rotate(online)
    repository.publish("root")
    repository.republish(role, 1, *rest)
    assert client.refresh()
    assert client.version(role) == 1


ROOT_ROTATIONS: dict[str, list[tuple[str, int, str, bool]]] = {
    # keys, threshold and signatures of each version, and whether the client follows to it
    "1-of-1": [("1", 1, "1", True), ("2", 1, "21", True), ("2", 1, "2", True)],
    "1-of-1, unused signatures": [("1", 1, "314", True), ("2", 1, "3214", True), ("2", 1, "324", True)],
    "3-of-5, other combinations": [
        ("01234", 3, "024", True), ("01234", 3, "041", True), ("01234", 3, "013", True), ("01234", 3, "013", True),
    ],
    "3-of-5, one key": [("01234", 3, "024", True), ("01345", 3, "041", True)],
    "3-of-5, all keys": [("01234", 3, "024", True), ("56789", 3, "024567", True), ("56789", 3, "567", True)],
    "threshold up": [("123", 1, "1", True), ("123", 2, "12", True)],
    "threshold down": [("123", 2, "12", True), ("123", 1, "12", True), ("123", 1, "1", True)],
    "a key more": [("1", 1, "1", True), ("12", 2, "12", True)],
    "not signed by the old": [("1", 1, "1", True), ("2", 1, "234", False)],
    "not signed by the new": [("1", 1, "1", True), ("2", 1, "134", False)],
    "not by 3 new": [("01234", 3, "024", True), ("01345", 3, "024", False)],
    "not by 3 old": [("01234", 3, "024", True), ("01345", 3, "045", False)],
    "new threshold not reached": [("123", 1, "1", True), ("123", 2, "2", False)],
    "old threshold not reached": [("123", 2, "12", True), ("123", 1, "1", False)],
}  # fmt: skip


@pytest.mark.parametrize("name", ROOT_ROTATIONS)
def test_root_rotation(tmp_path: Path, repository: Repository, name: str) -> None:
    signers = [CryptoSigner.generate_ed25519() for _ in range(10)]
    del repository.published["root"]
    for keys, threshold, signatures, _ in ROOT_ROTATIONS[name]:
        chosen = [signers[int(key)] for key in keys]
        repository.set_keys("root", chosen, threshold, [signers[int(key)] for key in signatures])
        repository.publish("root")
    client = Client(tmp_path, repository)
    follows = [follows for *_, follows in ROOT_ROTATIONS[name]]
    assert client.refresh() is all(follows)
    assert client.version("root") == sum(follows)


@pytest.mark.parametrize(
    "version",
    [
        ("2", 1, "2", True), ("1", 1, "314", True), ("2", 1, "134", False), ("01345", 3, "024", False),
        ("01345", 3, "04", False), ("01234", 3, "024", True), ("01234", 3, "234", True),
    ],
)  # fmt: skip
@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_non_root_rotations(
    client: Client, repository: Repository, role: str, version: tuple[str, int, str, bool]
) -> None:
    keys, threshold, signatures, is_good = version
    signers = [CryptoSigner.generate_ed25519() for _ in range(6)]
    chosen = [signers[int(key)] for key in keys]
    repository.set_keys(role, chosen, threshold, [signers[int(key)] for key in signatures])
    repository.publish("root", "targets", "snapshot", "timestamp")
    assert client.refresh() is is_good


def test_an_error_of_a_client_says_what_to_do(client: Client, repository: Repository) -> None:
    repository.timestamp.expires = datetime.now(UTC).replace(microsecond=0) - timedelta(days=1)
    repository.publish("timestamp")
    with pytest.raises(
        TrustError,
        match=r"renews it with: fieldlm publish --refresh --to REPOSITORY, unless the clock is wrong",
    ):
        client.trust.refresh(repository)
