"""llama.cpp's own converter, out of the source distribution of the very llama-cpp-python that is installed.

So the converter and the engine are always of one version. It is fetched once through the user's pip, checked against
a pinned SHA-256, and unpacked into the cache; only the converter's files, none of the engine's source.
"""

import ast
import contextlib
import tarfile
import tempfile
from collections.abc import Callable, Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePosixPath

from fieldlm.catalogue.pip import pip_download
from fieldlm.core.errors import FieldlmError, InputError, MissingDependencyError
from fieldlm.core.files import cache_root, disk_errors, sha256_file, whole_folder
from fieldlm_compiler.pipeline.stages import lock

# version of llama-cpp-python → SHA-256 of its source distribution on PyPI
SDISTS = {"0.3.36": "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"}
PARTS = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "conversion", "gguf-py")
PACKAGES = ("gguf", "llama-cpp-python", "numpy", "peft", "safetensors", "tokenizers", "torch", "transformers")


def llama_converter() -> Path:
    """Return the folder with `convert_hf_to_gguf.py`, fetched on first use.

    Raises UnavailableError when pip cannot fetch it, InputError when what came is not what was pinned.
    """
    release = version("llama-cpp-python")
    if release not in SDISTS:
        raise MissingDependencyError(
            f"no converter is pinned for llama-cpp-python {release}; "
            f"run: pip install llama-cpp-python=={next(iter(SDISTS))}"
        )
    folder = cache_root() / "toolchains" / f"llama.cpp-{release}-{SDISTS[release][:12]}"
    with disk_errors(folder), lock(folder.with_name(f".{folder.name}.lock")):
        if not folder.exists():
            _install(folder, release)
    return folder


def converter_sha256() -> str:
    """Return the digest that names the converter: that of the source distribution it came from."""
    return SDISTS[version("llama-cpp-python")]


def versions() -> dict[str, str]:
    """Return the version of every package that has a say in the bytes of a GGUF bundle."""
    return {"llama.cpp-converter": f"sha256:{converter_sha256()}", **installed(PACKAGES)}


def installed(names: Iterable[str]) -> dict[str, str]:
    """Return the version of each of the packages `names` that is installed."""
    found: dict[str, str] = {}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def supported_architectures(converter: Path) -> frozenset[str]:
    """Return the names in `architectures` of a config.json that the converter can turn into a GGUF.

    The table is read, not imported: importing it would load torch.
    """
    tree = ast.parse((converter / "conversion" / "__init__.py").read_text())
    for node in tree.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "TEXT_MODEL_MAP":
            assert node.value is not None, "the table has content"
            return frozenset(ast.literal_eval(node.value))
    raise FieldlmError(f"{converter} has no table of architectures; remove the folder and run the same command again")


def _install(folder: Path, release: str) -> None:
    requirement = f"llama-cpp-python=={release}"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".download-", dir=folder.parent) as temporary:
        kept = folder.parent / f"llama_cpp_python-{release}.tar.gz"
        sdist = kept if kept.exists() else pip_download(requirement, Path(temporary), "--no-binary", "llama-cpp-python")
        found = sha256_file(sdist)
        if found != SDISTS[release]:
            raise InputError(f"{sdist.name} has SHA-256 {found}, expected {SDISTS[release]}; check your pip index")
        with whole_folder(folder) as aside:
            unpack(sdist, aside)


def unpack(
    sdist: Path, into: Path, *, wanted: Callable[[str], bool] = PARTS.__contains__, needs: str = PARTS[0]
) -> None:
    """Write the files of llama.cpp in `sdist` whose topmost name is `wanted`, the converter's, to `into`.

    Raises InputError for a file that points outside of it, or when `needs` is not there.
    """
    with tarfile.open(sdist) as archive:
        for member in archive:
            parts = PurePosixPath(member.name).parts
            inner = parts[3:] if parts[1:3] == ("vendor", "llama.cpp") else ()
            if not inner or not wanted(inner[0]) or not member.isfile():
                continue
            if ".." in inner:
                raise InputError(f"{sdist.name} names a file outside its folder: {member.name}")
            target = into.joinpath(*inner)
            target.parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            assert source is not None, "a regular file has content"
            target.write_bytes(source.read())
    if not (into / needs).exists():
        raise InputError(f"{sdist.name} carries no {needs}; it is not a source distribution of llama-cpp-python")
