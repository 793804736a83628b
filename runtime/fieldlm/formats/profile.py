"""A device profile: what a kind of device is, what it may be asked for, and who says so.

    device_profiles/rpi5-8gb.toml
    [memory]
    bandwidth_gb_s = { value = 17.0, kind = "theory", source = "Raspberry Pi documentation, bcm2712.adoc" }

Every number is written with its kind and its source. `theory` comes from a data sheet, `measured` from a measurement
somebody published or we made, `policy` is our choice and its source is the reason. What nobody knows is absent, never
guessed. Loading takes the numbers out of those tables: `profile.memory.bandwidth_gb_s` is 17.0, and
`profile.sources["memory.bandwidth_gb_s"]` says where it came from. Rows (power modes, references) carry one `source`
for the whole row; matching rules are not facts and carry none.

A profile may `inherits` another: tables are merged, everything else is replaced. `match` and `references` belong to
one device and are never inherited. The same board with other memory is `variant_of` it: `match` is inherited, too, and
the file says what differs. `lint`, in `profile_lint`, says what is impossible.
"""

import copy
import difflib
import functools
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeGuard

import msgspec

from fieldlm.core.errors import ProfileError
from fieldlm.core.files import canonical_json, sha256_bytes
from fieldlm.formats.growth import check_names, is_readable

FORMAT = "fieldlm.profile/1"
_UNKNOWN = re.compile(r"unknown field `(?P<name>[^`]+)`(?: - at `\$(?P<place>.*)`)?")

Arch = Literal["aarch64", "x86_64"]
Kind = Literal["theory", "measured", "policy"]
Isa = Literal[
    "neon", "dotprod", "fp16", "i8mm", "sve", "sve2", "sme",
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "amx_int8",
]  # fmt: skip
# What files of older versions carry and nothing ever read: a setting, or a whole section.
RETIRED = (
    "cpu.clock_ghz", "cpu.ggml_variant", "gguf.imatrix", "onnx.bits", "onnx.quantized_head", "power.sensor", "storage",
)  # fmt: skip


MOST_NEAR = 6  # names that a misspelt one is answered with: a board of every size


class Provenance(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Who says a number, and what kind of saying it is."""

    kind: Kind
    source: str


class Match(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `detect` compares; shell patterns where it compares text.

    `memory_mb`, `isa`, `gpu` and `chassis` rule a profile out when they do not hold. Of what names the machine one has
    to hold: `model`, `compatible` and `soc` of the device tree, `product` (DMI's maker and product), or `cpu`.
    """

    model: tuple[str, ...] = ()
    compatible: tuple[str, ...] = ()
    soc: tuple[str, ...] = ()
    product: tuple[str, ...] = ()
    cpu: tuple[str, ...] = ()
    memory_mb: tuple[int, int] | None = None
    isa: tuple[Isa, ...] = ()
    gpu: tuple[str, ...] = ()
    chassis: Literal["", "laptop"] = ""
    os: Literal["linux", "macos"] = "linux"

    @property
    def names_machine(self) -> bool:
        """Whether it is for machines of one name, or for all that have something in common."""
        return bool(self.model or self.compatible or self.soc or self.product or self.cpu)


class Cpu(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processor. `big_cores` counts the fast cores of a mixed set.

    Threads are for an otherwise idle device; prompts take `prefill_threads`, or `decode_threads` where nobody says.
    """

    arch: Arch
    name: str = ""
    cores: int | None = None
    big_cores: int | None = None
    isa: tuple[Isa, ...] = ()
    decode_threads: int
    prefill_threads: int | None = None


class Memory(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Memory in megabytes (1e6 bytes). `model_budget_mb` bounds weights, KV cache and compute buffers together.

    `bandwidth_gb_s` is the data sheet's, `read_gb_s` what somebody reached.
    """

    total_mb: int | None = None
    unified: bool = False
    reserve_mb: int
    model_budget_mb: int
    bandwidth_gb_s: float | None = None
    read_gb_s: float | None = None


class Accelerator(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A GPU or NPU. `memory` says whether it has its own or shares the CPU's; `used` whether we run on it today."""

    kind: Literal["cuda", "metal", "vulkan", "npu"]
    name: str
    memory: Literal["own", "unified"]
    compute_capability: str = ""
    used: bool = False
    memory_mb: int | None = None
    bandwidth_gb_s: float | None = None
    source: str


class PowerMode(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One setting of the device's power manager."""

    name: str
    watts: float | None = None
    default: bool = False
    source: str


class Power(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the device draws; watts at `domain` (the wall, a rail, the package)."""

    domain: str = ""
    idle_w: float | None = None
    load_w: float | None = None
    modes: tuple[PowerMode, ...] = ()


class Thermal(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """At what temperature the clock falls, and the kernel's zones that show it; without any, the hottest sensor."""

    zones: tuple[str, ...] = ()
    throttle_c: float | None = None


class Gguf(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What llama.cpp may be given: file types in order of preference, and tokens of context for each answer.

    `flash_attention` is kept to, or loading fails; where nobody says, llama.cpp decides. `kv_k` and `kv_v` are the
    types of keys and values; where nobody says, the bundle does, or else they are F16.
    """

    quants: tuple[str, ...]
    default_quant: str
    context: int
    kv_k: str | None = None
    kv_v: str | None = None
    flash_attention: bool | None = None


class Onnx(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What onnxruntime may be given: int4 MatMulNBits of this shape, on providers that work in the CPU's memory."""

    block_size: int
    accuracy_level: int
    providers: tuple[str, ...] = ("CPUExecutionProvider",)


class Runtime(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How the device serves: answers at a time, and whether weights stay in a mapped file or are read into memory."""

    parallel: int
    mmap: bool = False


class Expect(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The share of the bandwidth that decoding should reach, in per cent; outside of it, something is wrong."""

    bandwidth_percent_low: float | None = None
    bandwidth_percent_high: float | None = None


class Reference(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A speed somebody published for this device. Not ours, not repeated by us."""

    model: str
    quant: str = ""
    mode: str = ""
    prefill_tokens_s: float | None = None
    decode_tokens_s: float | None = None
    watts: float | None = None
    source: str


class Profile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A kind of device. `id` is its file's name; `engines` are those that bundles for it may need."""

    format: str
    id: str
    title: str
    generic: bool = False
    engines: tuple[str, ...]
    cpu: Cpu
    memory: Memory
    accelerators: tuple[Accelerator, ...] = ()
    power: Power = Power()
    thermal: Thermal = Thermal()
    gguf: Gguf
    onnx: Onnx
    runtime: Runtime
    expect: Expect = Expect()
    match: Match = Match()
    references: tuple[Reference, ...] = ()
    sources: dict[str, Provenance] = {}

    @property
    def bandwidth_gb_s(self) -> float | None:
        """The bandwidth of the memory that the weights lie in, as the data sheet has it."""
        own = [a for a in self.accelerators if a.used and a.memory == "own"]
        return own[0].bandwidth_gb_s if own else self.memory.bandwidth_gb_s


def profile_folder() -> Path:
    """Return the folder of the shipped profiles: the checkout's where there is one, else the wheel's."""
    here = Path(__file__).resolve()
    checkout = here.parents[3] / "device_profiles"
    return checkout if checkout.is_dir() else here.parents[1] / "device_profiles"


def profile_names() -> list[str]:
    return sorted(path.stem for path in profile_folder().glob("*.toml"))


def load_profile(name_or_path: str) -> Profile:
    """Read a shipped profile by name, or any profile by the path of its `.toml`.

    Raises ProfileError when there is none of that name, with the names that are near, or when the file is wrong, with
    the field that is.
    """
    path = _path(name_or_path)
    table = _without_retired(_read(path, seen=()))
    sources: dict[str, Provenance] = {}
    try:
        plain = _take_sources(table, "", sources)
        profile = _known({**plain, "sources": sources}, what=str(path))
    except msgspec.ValidationError as error:
        raise ProfileError(f"{path}: {error}") from error
    if not is_readable(profile.format, FORMAT):
        raise ProfileError(f"{path} has format {profile.format!r}, this version reads {FORMAT!r}; update fieldlm")
    if profile.id != path.stem:
        raise ProfileError(f"{path} has the id {profile.id!r}; rename the file to {profile.id}.toml, or change the id")
    return profile


def _known(plain: dict[str, Any], *, what: str) -> Profile:
    """Return the profile: a newer minor version without what it adds, the known one only if nothing is misspelt.

    Raises ValidationError, and ProfileError when a newer one must not be read without what it adds.
    """
    needed = msgspec.convert(plain.pop("must_understand", []), list[str])
    passed: set[str] = set()
    while True:
        try:
            profile = msgspec.convert(plain, Profile)
        except msgspec.ValidationError as error:
            unknown = _UNKNOWN.search(str(error))
            if unknown is None or plain.get("format") == FORMAT or not is_readable(str(plain.get("format")), FORMAT):
                raise
            plain = copy.deepcopy(plain)  # its rows are those of the text that is kept
            passed.add(_without(plain, unknown["place"] or "", unknown["name"]))
        else:
            check_names(needed, set(needed) - passed, what=what, error=ProfileError)
            return profile


def _without(plain: dict[str, Any], place: str, name: str) -> str:
    """Take the field `name` out of the table at `place`, such as `.references[0]`, and return its name in full."""
    table: Any = plain
    steps = [key or int(number) for key, number in re.findall(r"\.(\w+)|\[(\d+)\]", place)]
    for step in steps:
        table = table[step]
    del table[name]
    return ".".join([*(step for step in steps if isinstance(step, str)), name])


def profile_sha256(profile: Profile) -> str:
    """Return the digest of everything the profile says, inherited or its own, whatever the file's layout."""
    return sha256_bytes(canonical_json(profile))


def _path(name_or_path: str) -> Path:
    if name_or_path.endswith(".toml"):
        return Path(name_or_path)
    if re.fullmatch(r"[A-Za-z0-9._-]+", name_or_path):
        path = profile_folder() / f"{name_or_path}.toml"
        if path.is_file():
            return path
    near = _of_its_words(name_or_path) or difflib.get_close_matches(name_or_path, profile_names(), n=3, cutoff=0.4)
    hint = f"did you mean {_listed(near)}? " if near else ""
    raise ProfileError(f"there is no profile {name_or_path!r}; {hint}all of them: fieldlm profiles")


def _of_its_words(name: str) -> list[str]:
    """Return the profiles that have the most of the words of `name` in id and title, half of them at least."""
    asked = _words(name)
    shared = {known: len(asked & _words(f"{known} {load_profile(known).title}")) for known in profile_names()}
    most = max(shared.values(), default=0)
    near = [known for known, count in shared.items() if count == most] if asked and 2 * most >= len(asked) else []
    return sorted(near, key=_by_number)[:MOST_NEAR]


def _listed(names: list[str]) -> str:
    """Return a, b or c."""
    *most, last = names
    return f"{', '.join(most)} or {last}" if most else last


def _by_number(name: str) -> list[tuple[str, int]]:
    """Sort 2gb before 16gb."""
    return [(word, int(number or 0)) for word, number in re.findall(r"(\D*)(\d*)", name)]


def _words(text: str) -> set[str]:
    """Return letters and numbers apart: pi5 is pi and 5."""
    return set(re.findall(r"[a-z]+|[0-9]+", text.lower()))


def _read(path: Path, *, seen: tuple[str, ...]) -> dict[str, Any]:
    """Read the TOML at `path` on top of what it inherits."""
    try:
        table = dict(_parsed(path.read_text(encoding="utf-8")))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ProfileError(f"profile {path} cannot be read: {error}") from error
    if "sources" in table:
        raise ProfileError(f"{path}: sources stand beside their numbers, as {{ value, kind, source }}")
    inherits, original = table.pop("inherits", None), table.pop("variant_of", None)
    if inherits and original:
        raise ProfileError(f"{path} inherits {inherits} and is a variant of {original}; want one of the two")
    parent = inherits or original
    if parent is None:
        return table
    if path.stem in seen:
        raise ProfileError(f"{path} inherits itself by way of {' → '.join([*seen, path.stem])}")
    beside = path.with_name(f"{parent}.toml")
    inherited = _read(beside if beside.is_file() else _path(str(parent)), seen=(*seen, path.stem))
    own_only = {"references", "id", "title", "generic"} | ({"match"} if inherits else set[str]())
    return _merge({key: value for key, value in inherited.items() if key not in own_only}, table)


@functools.cache
def _parsed(text: str) -> dict[str, Any]:
    """Return what TOML says; kept, because whoever looks at all profiles reads their parents many times."""
    return tomllib.loads(text)


def _without_retired(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    return {
        key: _without_retired(value, f"{prefix}{key}.") if _is_section(value) else value
        for key, value in table.items()
        if f"{prefix}{key}" not in RETIRED
    }


def _merge(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(under)
    for key, value in over.items():
        below = merged.get(key)
        if _is_section(value) and _is_section(below):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _is_section(value: object) -> TypeGuard[dict[str, Any]]:
    return isinstance(value, dict) and "value" not in value


def _take_sources(table: dict[str, Any], prefix: str, sources: dict[str, Provenance]) -> dict[str, Any]:
    """Replace every `{ value, kind, source }` by its value and note its source; `value = "unknown"` drops it."""
    plain: dict[str, Any] = {}
    for key, value in table.items():
        if not isinstance(value, dict):
            plain[key] = value
        elif "value" not in value:
            plain[key] = _take_sources(value, f"{prefix}{key}.", sources)
        elif value["value"] != "unknown":
            plain[key] = value["value"]
            said = {name: item for name, item in value.items() if name != "value"}
            sources[f"{prefix}{key}"] = msgspec.convert(said, Provenance)
    return plain


def without_gpu(profile: Profile) -> Profile:
    """Return `profile` as a workshop can try it, which need not have the device's accelerator."""
    return msgspec.structs.replace(profile, accelerators=())
