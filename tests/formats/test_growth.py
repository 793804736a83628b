"""Forward compatibility: documents of a newer minor version, read by this one."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from fieldlm.core.errors import BundleError, FieldlmError, InputError, ProfileError
from fieldlm.core.files import canonical_json
from fieldlm.core.signing import sign
from fieldlm.formats import command, policy, topics
from fieldlm.formats.bundle import File, Manifest, ModelInfo, Recipe, open_bundle, parse_manifest, write_bundle
from fieldlm.formats.profile import load_profile, profile_folder
from fieldlm.formats.record import FIELDS, Record, WireError, pack, unpack
from fieldlm.formats.release import parse_release
from fieldlm_compiler.learn.curated import CuratedExample, read_examples, write_examples

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
DIGEST = "0" * 64
MANIFEST: dict[str, Any] = {
    "format": "fieldlm.bundle/1",
    "engine": "llama",
    "model": {
        "name": "m", "source": "m", "licence": "mit", "architecture": "llama", "parameters": 1, "context": 8,
        "source_sha256": DIGEST,
    },
    "profile": "p",
    "profile_sha256": DIGEST,
    "recipe": {"quant": "Q8_0", "bits_per_weight": 8.5, "adapter_rank": None},
    "files": [{"path": "a", "role": "base", "size": 1, "sha256": DIGEST}],
}  # fmt: skip
BLOB = {"sha256": DIGEST, "size": 1}
RELEASE: dict[str, Any] = {
    "format": "fieldlm.release/1", "seq": 1, "profile": "p", "bundle": DIGEST, "signer": "k", "manifest": BLOB,
    "signature": BLOB, "files": [BLOB | {"path": "a", "role": "base"}],
}  # fmt: skip
COMMAND = {"id": "1", "device": "d", "nonce": "n", "do": "status"}
POLICY = {"fleet": "f", "version": 1}


def read_command(document: dict[str, Any]) -> Any:
    data = json.dumps(document)
    envelope = {"command": data, "signature": msgspec.to_builtins(sign(data.encode(), KEY)), "colour": "red"}
    return command.parse(json.dumps(envelope).encode())


def read_policy(document: dict[str, Any]) -> Any:
    data = json.dumps(document)
    signature = sign(data.encode(), KEY)
    envelope = json.dumps({"policy": data, "signature": msgspec.to_builtins(signature)}).encode()
    return policy.parse_policy(envelope, trusted=frozenset({signature.keyid}), fleet="f")


@dataclass(frozen=True)
class Kind:
    document: dict[str, Any]
    read: Callable[[dict[str, Any]], Any]
    error: type[FieldlmError]


KINDS = {
    "manifest": Kind(MANIFEST, lambda d: parse_manifest(json.dumps(d).encode(), what="it"), BundleError),
    "release": Kind(RELEASE, lambda d: parse_release(json.dumps(d).encode(), what="it"), BundleError),
    "command": Kind(COMMAND, read_command, WireError),
    "policy": Kind(POLICY, read_policy, WireError),
    "hello": Kind(
        {"device": "d", "epoch": 1, "first": {}, "last": {}},
        lambda d: topics.parse_hello(json.dumps(d).encode()), WireError,
    ),
    "ack": Kind({"epoch": 1, "upto": {}}, lambda d: topics.parse_ack(json.dumps(d).encode()), WireError),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_what_a_newer_minor_version_adds_is_ignored(name: str) -> None:
    kind = KINDS[name]
    assert kind.read(kind.document | {"colour": "red", "must_understand": []}) is not None
    if "format" in kind.document:
        assert kind.read(kind.document | {"format": kind.document["format"] + ".7", "colour": "red"}) is not None


@pytest.mark.parametrize("name", KINDS)
def test_what_must_be_understood_and_is_not_is_refused_by_its_name(name: str) -> None:
    kind = KINDS[name]
    known = next(iter(kind.document))
    with pytest.raises(kind.error, match="needs colour, which this version does not know"):
        kind.read(kind.document | {"colour": "red", "must_understand": [known, "colour"]})


@pytest.mark.parametrize("name", ["manifest", "release"])
def test_another_major_version_is_refused(name: str) -> None:
    kind = KINDS[name]
    for other in ("2", "1x", "10", "1.", "1.x"):
        with pytest.raises(kind.error, match="update fieldlm"):
            kind.read(kind.document | {"format": kind.document["format"][:-1] + other})


def test_a_bundle_with_a_file_for_a_role_of_a_newer_version_is_read(tmp_path: Path) -> None:
    extra = {"path": "b", "role": "hologram", "size": 1, "sha256": DIGEST, "colour": "red"}
    manifest = KINDS["manifest"].read(MANIFEST | {"files": [*MANIFEST["files"], extra], "engine": "warp"})
    assert (manifest.files[1].role, manifest.engine) == ("hologram", "warp")
    with pytest.raises(BundleError, match="needs hologram"):
        KINDS["manifest"].read(MANIFEST | {"must_understand": ["base", "hologram"]})


def test_what_has_nothing_new_in_it_is_signed_in_the_same_bytes_as_before() -> None:
    model = ModelInfo(**MANIFEST["model"])
    recipe, file = Recipe(quant="Q8_0", bits_per_weight=8.5), File(path="a", role="base", size=1, sha256=DIGEST)
    manifest = Manifest(
        format=MANIFEST["format"], engine="llama", model=model, profile="p", profile_sha256=DIGEST, recipe=recipe,
        files=(file,),
    )  # fmt: skip
    assert b"must_understand" not in canonical_json(manifest)
    assert b"must_understand" not in policy.sign_policy(policy.Policy(fleet="f", version=1), KEY)


def test_a_bundle_that_the_version_before_wrote_keeps_its_id(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"x")
    file = File(
        path="a", role="base", size=1, sha256="2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"
    )
    document = MANIFEST | {"files": [msgspec.to_builtins(file)], "notes": {}}
    data = canonical_json(document)
    (tmp_path / "manifest.json").write_bytes(data)
    (tmp_path / "manifest.sig").write_bytes(canonical_json(sign(data, KEY)))
    opened = open_bundle(tmp_path)
    assert opened.id == "1b04dda5861b4e5d050a563555970b0ffd3bd7075f71290a56984aa9270af1c3"
    assert write_bundle(tmp_path, opened.manifest, KEY).manifest == opened.manifest


def newer_profile(folder: Path, lines: str) -> Path:
    source = next(path for path in sorted(profile_folder().glob("*.toml")) if "inherits" not in path.read_text())
    path = folder / source.name
    shutil.copyfile(source, path)
    text = path.read_text().replace('format = "fieldlm.profile/1"', f'format = "fieldlm.profile/1.4"\n{lines}', 1)
    path.write_text(text.replace("[cpu]\n", "[cpu]\nturbo_ghz = 9\n", 1) + "\n[hologram]\nwatts = 3\n")
    return path


def test_a_profile_of_a_newer_minor_version_is_read_without_what_it_adds(tmp_path: Path) -> None:
    path = newer_profile(tmp_path, 'colour = "red"')
    assert load_profile(str(path)).cpu == load_profile(path.stem).cpu


def test_a_profile_that_must_be_understood_is_refused_by_the_name_of_what_is_not(tmp_path: Path) -> None:
    path = newer_profile(tmp_path, 'must_understand = ["cpu.turbo_ghz", "memory"]')
    with pytest.raises(ProfileError, match=r"needs cpu\.turbo_ghz, which"):
        load_profile(str(path))


def test_a_misspelt_field_of_a_known_profile_is_an_error(tmp_path: Path) -> None:
    path = newer_profile(tmp_path, "")
    path.write_text(path.read_text().replace("profile/1.4", "profile/1"))
    with pytest.raises(ProfileError, match="unknown field"):
        load_profile(str(path))


def test_a_row_of_a_newer_schema_is_read_as_far_as_it_is_known() -> None:
    key: dict[str, Any] = {"device": "d", "epoch": 1, "stream": "gen", "seq": 2}
    record = msgspec.convert(key | {"kind": "hologram", "answer": "yes"}, Record)
    _, *values = msgspec.msgpack.decode(pack(record))
    assert unpack(msgspec.msgpack.encode([99, *values, "colour"]), **key) == record
    with pytest.raises(WireError):
        unpack(msgspec.msgpack.encode([99, *values[: len(FIELDS) - 1]]), **key)


def test_examples_have_a_version_and_those_without_one_are_read(tmp_path: Path) -> None:
    example = CuratedExample(
        messages=[{"role": "user", "content": "hi"}], answer="ho", label_source="correction", session="s", response="r",
        split="train",
    )  # fmt: skip
    path = tmp_path / "examples.jsonl"
    write_examples(path, [example])
    row = json.loads(path.read_text())
    assert row.pop("v") == 1
    path.write_text(json.dumps(row | {"colour": "red"}) + "\n")
    assert read_examples(path) == [example]
    path.write_text(json.dumps(row | {"v": 2}) + "\n")
    with pytest.raises(InputError, match=r"examples\.jsonl:1 is of version 2, known: 1"):
        read_examples(path)
