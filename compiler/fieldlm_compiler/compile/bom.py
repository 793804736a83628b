"""CycloneDX 1.6 bill of materials (ML-BOM) of a bundle. The same bundle, the same bytes."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fieldlm.core.files import canonical_json, sha256_bytes, sha256_file
from fieldlm.formats.bundle import Manifest
from fieldlm_compiler.checkpoints.licences import AND
from fieldlm_compiler.pipeline.pack import BundlePart

NAME = "bom.cdx.json"
SPEC = "1.6"
# As model cards write them, and as SPDX does.
SPDX = {"apache-2.0": "Apache-2.0", "mit": "MIT", "cc-by-4.0": "CC-BY-4.0", "bsd-3-clause": "BSD-3-Clause"}
SHA256 = "SHA-256"
DIGEST = "sha256:"


def bill(manifest: Manifest, parts: Sequence[BundlePart]) -> bytes:
    """Return the bill of the bundle that `manifest` and `parts` are about to become."""
    body: dict[str, Any] = {
        "bomFormat": "CycloneDX",
        "specVersion": SPEC,
        "version": 1,
        "metadata": {"component": _model(manifest)},
        "components": [*_source(manifest), *map(_file, parts), *_toolchain(manifest)],
    }
    # A number for the document that depends on nothing but its content.
    number = uuid.uuid5(uuid.NAMESPACE_URL, f"fieldlm:{sha256_bytes(canonical_json(body))}")
    return canonical_json({**body, "serialNumber": f"urn:uuid:{number}"})


def _model(manifest: Manifest) -> dict[str, Any]:
    recipe = manifest.recipe
    facts = {
        "fieldlm:quant": recipe.quant,
        "fieldlm:bits-per-weight": f"{recipe.bits_per_weight:g}",
        "fieldlm:profile": manifest.profile,
        "fieldlm:profile-sha256": manifest.profile_sha256,
        "fieldlm:merged-adapter-sha256": recipe.merged_adapter_sha256,
        "fieldlm:parent-bundle": manifest.parent,
        **{f"fieldlm:{name}": value for name, value in recipe.options.items()},
    }
    card: dict[str, Any] = {
        "modelParameters": {
            "task": "text-generation",
            "architectureFamily": manifest.model.architecture,
            "datasets": [{"type": "dataset", "name": manifest.dataset}] if manifest.dataset else [],
        },
        "quantitativeAnalysis": {
            "performanceMetrics": [
                {"type": gate.name, "value": f"{gate.value:g}{' ' + gate.unit if gate.unit else ''}"}
                for gate in manifest.gates
            ]
        },
    }
    return {
        "type": "machine-learning-model",
        "bom-ref": "model",
        "name": manifest.model.name,
        "licenses": _licences(manifest),
        "modelCard": card,
        "properties": [{"name": name, "value": value} for name, value in sorted(facts.items()) if value],
    }


def _source(manifest: Manifest) -> list[dict[str, Any]]:
    model = manifest.model
    return [
        {
            "type": "machine-learning-model",
            "bom-ref": "source",
            "name": model.source,
            "hashes": [{"alg": SHA256, "content": model.source_sha256}],
            "licenses": _licences(manifest),
        }
    ]


def _file(part: BundlePart) -> dict[str, Any]:
    source = part.source
    digest = sha256_file(source) if isinstance(source, Path) else sha256_bytes(source)
    return {
        "type": "file",
        "bom-ref": f"file:{part.name}",
        "name": part.name,
        "hashes": [{"alg": SHA256, "content": digest}],
        "properties": [{"name": "fieldlm:role", "value": part.role}],
    }


def _toolchain(manifest: Manifest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name, version in sorted(manifest.toolchain.items()):
        tool: dict[str, Any] = {"type": "library", "bom-ref": f"tool:{name}", "name": name}
        if version.startswith(DIGEST):
            tool["hashes"] = [{"alg": SHA256, "content": version.removeprefix(DIGEST)}]
        else:
            tool |= {"version": version, "purl": f"pkg:pypi/{name}@{version}"}
        found.append(tool)
    return found


def _licences(manifest: Manifest) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for name in manifest.model.licence.split(AND):
        known = SPDX.get(name.lower())
        found.append({"license": {"id": known} if known else {"name": name}})
    return found
