"""The scenarios of TUF's conformance suite about files and delegations; `test_tuf_conformance.py` has the others."""

# pyright: reportPrivateImportUsage=false

from pathlib import Path

import pytest
from tuf.api.metadata import TargetFile

from tests.support.tuf_repository import Client, Repository


@pytest.fixture
def repository() -> Repository:
    return Repository()


@pytest.fixture
def client(tmp_path: Path, repository: Repository) -> Client:
    return Client(tmp_path, repository)


def test_client_downloads_expected_file_in_sub_dir(client: Client, repository: Repository) -> None:
    repository.add_file("path/to/a/file.txt", b"contents")
    repository.publish("targets", "snapshot", "timestamp")
    assert client.download("path/to/a/file.txt") == b"contents"


def test_repository_substitutes_target_file(client: Client, repository: Repository) -> None:
    repository.add_file("a", b"good")
    repository.publish("targets", "snapshot", "timestamp")
    repository.files["a"] = b"evil"
    assert client.download("a") is None


def test_multiple_changes_to_target(client: Client, repository: Repository) -> None:
    for number in range(5):
        repository.add_file("a", f"contents {number}".encode())
        repository.publish("targets", "snapshot", "timestamp")
        assert client.download("a") == f"contents {number}".encode()
        repository.files["a"] = b"evil"
        assert client.download("a") is None


@pytest.mark.parametrize("hashes", [("sha256",), ("sha512",), ("sha256", "sha512")])
def test_download_with_hash_algorithms(client: Client, repository: Repository, hashes: tuple[str, ...]) -> None:
    repository.add_file("a", b"contents", hashes=hashes)
    repository.publish("targets", "snapshot", "timestamp")
    assert client.download("a") == b"contents"


def test_download_with_unknown_hash_algorithm(client: Client, repository: Repository) -> None:
    repository.add_file("a", b"contents")
    repository.targets.targets["a"] = TargetFile(8, {"unknown-hash": "0" * 64}, "a")
    repository.publish("targets", "snapshot", "timestamp")
    assert client.download("a") is None


GRAPHS: dict[str, tuple[list[tuple[str, str, tuple[str, ...], bool]], list[str]]] = {
    # delegations as by, to, paths, terminating; the order in which roles are asked for a path nobody has
    "basic-delegation": ([("targets", "A", (), False)], ["A"]),
    "single-level-delegations": ([("targets", "A", (), False), ("targets", "B", (), False)], ["A", "B"]),
    "two-level-DFS": (
        [("targets", "A", (), False), ("targets", "B", (), False), ("A", "C", (), False), ("A", "D", (), False)],
        ["A", "C", "D", "B"],
    ),
    "terminating": (
        [("targets", "A", (), False), ("targets", "B", (), False), ("A", "C", (), True), ("A", "D", (), False)],
        ["A", "C"],
    ),
    "not-matching-paths": (
        [("targets", "A", ("*.py",), False), ("targets", "B", (), False), ("A", "C", (), False)], ["B"],
    ),
    "cyclic-graph": (
        [("targets", "A", (), False), ("targets", "B", (), False), ("B", "C", (), False), ("C", "D", (), False),
         ("D", "B", (), False)],
        ["A", "B", "C", "D"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_graph_traversal(client: Client, repository: Repository, name: str) -> None:
    delegations, visited = GRAPHS[name]
    for by, role, paths, terminating in delegations:
        repository.delegate(by, role, *paths, terminating=terminating)
    roles = dict.fromkeys(role for by, role, *_ in delegations for role in (role, by) if role != "targets")
    repository.publish(*roles, "targets", "snapshot", "timestamp")
    assert client.download("missingpath") is None
    assert repository.asked[4:] == [f"1.{role}" for role in visited]


@pytest.mark.parametrize(
    ("path", "is_found"),
    [
        ("targetfile", True), ("README.md", True), ("releases/x/x_v1", True), ("releases/z/z_v1.zip", False),
        ("releases/README.md", False), ("foo-1.tgz", True), ("foo-alpha.tgz", False), ("README.MD", False),
    ],
)  # fmt: skip
def test_targetfile_search(client: Client, repository: Repository, path: str, is_found: bool) -> None:
    repository.delegate("targets", "A", "*.doc", "*.md", "foo-?.tgz")
    repository.delegate("targets", "B", "releases/*/*")
    repository.delegate("B", "C", "releases/x/*")
    repository.delegate("B", "D", "releases/y/*.zip")
    for by, name in [
        ("targets", "targetfile"), ("A", "README.md"), ("A", "releases/README.md"), ("A", "foo-1.tgz"),
        ("A", "foo-alpha.tgz"), ("C", "releases/x/x_v1"), ("D", "releases/z/z_v1.zip"),
    ]:  # fmt: skip
        repository.add_file(name, name.encode(), by=by)
    repository.publish("A", "C", "D", "B", "targets", "snapshot", "timestamp")
    assert client.download(path) == (path.encode() if is_found else None)


def test_delegation_not_in_snapshot(client: Client, repository: Repository) -> None:
    repository.delegate("targets", "delegated", "delegatedpath/*")
    repository.publish("delegated", "targets")
    del repository.snapshot.meta["delegated.json"]
    repository.publish("snapshot", "timestamp")
    assert client.refresh()
    assert client.download("delegatedpath/foo") is None
    assert "1.delegated" not in repository.asked
