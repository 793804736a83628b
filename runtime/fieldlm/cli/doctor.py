"""`fieldlm doctor`: one command says what is wrong with this device, and what to do next."""

import contextlib
import importlib.metadata
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

import msgspec

from fieldlm.core import options, terminal
from fieldlm.core.config import NO_NETWORK, Config, load_config
from fieldlm.core.errors import EngineError, FieldlmError
from fieldlm.core.extras import advice
from fieldlm.core.files import free_mb
from fieldlm.core.sqlite import connect_read_only
from fieldlm.core.urls import shown
from fieldlm.core.wording import counted
from fieldlm.formats.profile import Accelerator, Profile, load_profile, profile_folder
from fieldlm.formats.topics import parse_broker
from fieldlm.hardware import sensors
from fieldlm.hardware.accelerators import PresentAccelerator
from fieldlm.hardware.clock import LATEST_CLOCK_MS, OLDEST_CLOCK_MS
from fieldlm.hardware.cores import physical_cores
from fieldlm.hardware.detect import Detection, detect, obstacle
from fieldlm.hardware.energy import find_energy
from fieldlm.hardware.limits import LIVE
from fieldlm.network.http_client import OK, NobodyAnswersError, own_server
from fieldlm.telemetry.spool import quarantined

Level = Literal["ok", "warn", "fail"]
MARKS: dict[Level, str] = {"ok": "✓", "warn": "!", "fail": "✗"}
LEAST_FREE_MB = 200  # a spool at its bound and an adapter fit; a base model does not
SOME_OF_IT = 0.25
WISHED_FREE_MB = 2000  # one more generation of a 1B model
BUILD_NAMES = {
    "avx2": "AVX2", "f16c": "F16C", "fma": "FMA", "avx512f": "AVX512", "avx512_vnni": "AVX512_VNNI",
    "dotprod": "DOTPROD", "i8mm": "MATMUL_INT8", "sve": "SVE",
}  # fmt: skip
ASK_DEVICES = "import json; from fieldlm.engines import llama_devices as d; print(json.dumps(d.devices()))"
ASK_ENGINE = """
import llama_cpp
from fieldlm.engines.llama_kernels import load_kernels
load_kernels()
print(llama_cpp.__version__)
print(llama_cpp.llama_print_system_info().decode())
"""
ENGINE_ERROR = f"{EngineError.__module__}.{EngineError.__qualname__}"


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at, how it is, and what to do about it."""

    what: str
    level: Level
    text: str
    next: str = ""


def ok(what: str, text: str) -> Finding:
    return Finding(what=what, level="ok", text=text)


def warn(what: str, text: str, then: str) -> Finding:
    return Finding(what=what, level="warn", text=text, next=then)


def fail(what: str, text: str, then: str) -> Finding:
    return Finding(what=what, level="fail", text=text, next=then)


def main(argv: Sequence[str]) -> int:
    """Look at everything; 1 when something fails."""
    parser = terminal.parser(
        "doctor",
        "Say what is wrong with this device, and what to do next.",
        "fieldlm doctor",
        "fieldlm doctor --profile rpi5-8gb",
    )
    parser.add_argument("--profile", help="check against this profile instead of the detected one")
    parser.add_argument("--broker", help="check this broker instead of the configured one")
    parser.add_argument(
        "--port", type=options.whole(*options.PORT), help="check this port instead of the configured one"
    )
    args = parser.parse_args(argv)
    # What is configured wrongly is a finding; what is typed wrongly is refused.
    if args.profile:
        load_profile(args.profile)
    if args.broker:
        parse_broker(args.broker)
    findings = list(examine({"profile": args.profile, "broker": args.broker, "port": args.port}))
    lines: list[str] = []
    for finding in findings:
        lines.append(f"{MARKS[finding.level]} {finding.what:<12} {finding.text}")
        lines += [f"  {'':<12} → {finding.next}"] if finding.next else []
    failed = sum(finding.level == "fail" for finding in findings)
    lines.append(summary(findings))
    terminal.show({"passed": not failed, "findings": findings}, "\n".join(lines), as_json=args.json)
    return 1 if failed else 0


def summary(findings: Sequence[Finding]) -> str:
    """Return the line below the findings."""
    levels = Counter(finding.level for finding in findings)
    if levels["fail"]:
        return f"{levels['fail']} of {len(findings)} checks failed"
    passed = f"all {len(findings)}" if not levels["warn"] else f"{len(findings) - levels['warn']} of {len(findings)}"
    return f"{passed} checks passed" + (f"; look at those marked {MARKS['warn']}" if levels["warn"] else "")


def examine(flags: dict[str, object], root: Path = LIVE) -> Iterator[Finding]:
    """Look at the machine, then at the settings; a setting that is wrong is a finding too."""
    yield check_python(sys.version_info[:2])
    detection: Detection | None = None
    try:
        detection = detect(root)
    except FieldlmError as error:
        yield fail("profile", str(error), "fieldlm profiles; then set FIELDLM_PROFILE")
    yield from check_engine(detection.facts["isa"] if detection else ())
    yield check_clock(time.time(), _newest_file_s())
    try:
        config = load_config(flags, strict=True)
        profile = load_profile(config.profile) if config.profile else None
        if profile is None and detection:
            from fieldlm.device.startup import detected_profile

            profile = detected_profile(config, None, root)
    except FieldlmError as error:
        yield fail("settings", str(error), "correct it, then see: fieldlm config")
        return
    yield ok("settings", f"device {config.device or 'without a name yet'}, telemetry {config.telemetry}")
    if profile:
        yield from _check_device(profile, detection, root)
    yield from _check_settings(config)
    if config.max_watts:
        yield check_power(config.max_watts, root)


def _check_device(profile: Profile, detection: Detection | None, root: Path) -> Iterator[Finding]:
    yield check_profile(profile, detection, root)
    yield check_memory(sensors.memory_available_mb(root), profile)
    yield check_threads(physical_cores(), profile)
    yield check_heat(sensors.temperature_c(root, profile.thermal.zones), profile)
    for accelerator in profile.accelerators:
        if accelerator.used:
            yield check_accelerator(accelerator)
    if detection is not None and detection.best.id == profile.id:
        yield from check_idle(detection.idle)


def _check_settings(config: Config) -> Iterator[Finding]:
    yield check_state(config.state)
    yield check_disk(free_mb(config.state), config.spool_mb)
    yield check_spool(config.state / "spool.db", config.spool_mb)
    yield check_port(config)
    if config.broker:
        yield check_broker(config.broker)
    if config.repository:
        yield check_trust(config)


def check_python(version: tuple[int, ...]) -> Finding:
    words = ".".join(map(str, version))
    if version < (3, 11):
        return fail("python", f"this is {words}", "install Python 3.11 or later")
    return ok("python", words)


def check_engine(isa: Sequence[str]) -> Iterator[Finding]:
    """Import llama.cpp in a child process: built for another CPU, it kills whoever imports it."""
    again = advice(
        f"pip install --force-reinstall --no-binary llama-cpp-python 'llama-cpp-python=={pinned_engine()}'",
        "install a package that was built for this processor (make deb CPU=native on a machine like it)",
    )
    run = subprocess.run([sys.executable, "-c", ASK_ENGINE], capture_output=True, text=True, timeout=120, check=False)
    if run.returncode == -signal.SIGILL:
        yield fail("engine", "llama-cpp-python was built for another CPU: illegal instruction", again)
    elif run.returncode:
        last = (run.stderr.strip().splitlines() or [f"exit {run.returncode}"])[-1].removeprefix(f"{ENGINE_ERROR}: ")
        yield fail("engine", f"llama-cpp-python cannot be used: {last}", again)
    else:
        version, _, system = run.stdout.strip().partition("\n")
        yield check_pin(version, pinned_engine(), again)
        yield check_build(system, isa, again)


def pinned_engine() -> str:
    """Return the llama-cpp-python version that this release is made for."""
    for requirement in importlib.metadata.requires("fieldlm") or []:
        if found := re.match(r"llama-cpp-python\s*==\s*([\w.]+)", requirement):
            return found[1]
    raise AssertionError("pyproject.toml pins llama-cpp-python")


def check_pin(version: str, pinned: str, again: str) -> Finding:
    if version != pinned:
        return fail("engine", f"llama-cpp-python {version}, but this fieldlm speaks the ABI of {pinned}", again)
    return ok("engine", f"llama-cpp-python {version}")


def check_build(system: str, isa: Sequence[str], again: str) -> Finding:
    """Compare what the CPU has with what llama.cpp says it was built with."""
    built = set(re.findall(r"(\w+) = 1", system))
    unused = [name for name in isa if name in BUILD_NAMES and BUILD_NAMES[name] not in built]
    if unused:
        return warn("build", f"the CPU has {', '.join(unused)}, which this build leaves unused; slower", again)
    return ok("build", f"uses {', '.join(name for name in isa if name in BUILD_NAMES) or 'no special instructions'}")


def check_accelerator(accelerator: Accelerator) -> Finding:
    """Ask llama.cpp, in a child process, whether it sees what the profile promises."""
    from fieldlm.engines.llama_devices import ComputeDevice, promised

    run = subprocess.run([sys.executable, "-c", ASK_DEVICES], capture_output=True, text=True, timeout=120, check=False)
    if run.returncode:
        return fail("accelerator", f"llama.cpp does not say what it sees (exit {run.returncode})", "see engine, above")
    seen = [ComputeDevice(*row) for row in json.loads(run.stdout)]
    try:
        found = promised(accelerator, seen)
    except FieldlmError as error:
        what, _, then = str(error).partition("; ")
        return fail("accelerator", what, then or "compile for a profile without it")
    return ok("accelerator", f"{found.name}, {found.description}: {found.free_mb} of {found.total_mb} MB free")


def check_idle(idle: Sequence[PresentAccelerator]) -> Iterator[Finding]:
    """Name the GPUs that llama.cpp could compute on and does not; an NPU that only other programs use is no finding."""
    for each in idle:
        if each.build == "cuda":
            yield warn("idle", f"{each.name} computes nothing", f"it takes {each.use}")
        elif each.build:
            yield ok("idle", f"{each.name} computes nothing; it takes {each.use}")


def check_clock(now_s: float, newest_s: float) -> Finding:
    """TLS and update metadata expire by the clock; one that cannot be right sees neither."""
    words = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now_s))
    if now_s < max(newest_s, OLDEST_CLOCK_MS / 1000) - 86_400:
        return fail("clock", f"{words} is in the past; updates will look not yet valid", "timedatectl set-ntp true")
    if now_s * 1000 >= LATEST_CLOCK_MS:
        return fail("clock", f"{words} is far in the future; times are not believed", "timedatectl set-ntp true")
    return ok("clock", words)


def _newest_file_s() -> float:
    return max(path.stat().st_mtime for path in profile_folder().glob("*.toml"))


def check_profile(profile: Profile, detection: Detection | None, root: Path = LIVE) -> Finding:
    if detection is None or detection.best.id == profile.id:
        if profile.generic:
            return warn(
                "profile",
                f"{profile.id}: no profile names this machine, so nothing is known of its speed and power",
                "describe it in a file, and name that with --profile: docs/gpu.md",
            )
        return ok("profile", f"{profile.id} ({profile.title})")
    if why := obstacle(profile, root):
        return fail("profile", f"{profile.id} does not fit, this is a {detection.best.id}: {why}", "fieldlm detect")
    return ok("profile", f"{profile.id}, as its bundle or a setting says; detected: {detection.best.id}")


def check_memory(available_mb: int, profile: Profile) -> Finding:
    budget_mb = profile.memory.model_budget_mb
    # A budget that was taken from the machine is the most that models may have, and not what they need.
    if available_mb < (budget_mb if profile.memory.total_mb else SOME_OF_IT * budget_mb):
        return warn(
            "memory",
            f"{available_mb} MB available, the profile's models may take {budget_mb}",
            "stop what else runs, or compile for a smaller profile",
        )
    return ok("memory", f"{available_mb} MB available for a budget of {budget_mb}")


def check_threads(cores: int, profile: Profile) -> Finding:
    threads = profile.cpu.decode_threads
    if threads > cores:
        return warn("threads", f"the profile wants {threads}, this process may use {cores}", f"FIELDLM_THREADS={cores}")
    return ok("threads", f"{threads} of {cores} usable cores")


def check_heat(degrees: float | None, profile: Profile) -> Finding:
    limit = profile.thermal.throttle_c
    if degrees is None:
        return ok("temperature", "no sensor")
    if limit and degrees >= limit - 10:
        return warn("temperature", f"{degrees:.0f} °C, the clock falls at {limit:.0f}", "let it cool, or add a fan")
    return ok("temperature", f"{degrees:.0f} °C")


def check_power(max_watts: float, root: Path) -> Finding:
    """Say what measures the power that is to stay within `max_watts`."""
    source, reasons = find_energy(root)
    if source is None:
        return warn(
            "power",
            f"max_watts is {max_watts:g}, and nothing measures: {'; '.join(reasons)}",
            "without it nothing is kept",
        )
    return ok("power", f"up to {max_watts:g} W of the {source.facts.covers}, by {source.facts.source}")


def check_state(state: Path) -> Finding:
    place = next(folder for folder in (state, *state.parents) if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        return fail("state", f"{place} cannot be written: {error.strerror}", f"chown it to user {os.getuid()}")
    return ok("state", f"{state} can be written" if place == state else f"{state} is made by the first start")


def check_disk(free: int, spool_mb: int) -> Finding:
    if free < LEAST_FREE_MB + spool_mb:
        return fail(
            "disk", f"{free} MB free, less than the spool and an update need", "fieldlm slots; remove what is old"
        )
    if free < WISHED_FREE_MB:
        return warn("disk", f"{free} MB free; a large update may not fit", "free some space")
    return ok("disk", f"{free} MB free")


def check_spool(path: Path, spool_mb: int) -> Finding:
    """Look at the records that wait, at those that were given up, and at damaged files that were set aside."""
    if aside := quarantined(path):
        return warn(
            "spool", f"{aside[-1]} was damaged and set aside", "keep a copy if you want to know, then remove it"
        )
    if not path.exists():
        return ok("spool", "nothing recorded yet")
    try:
        waiting, dropped = _look_into(path)
    except sqlite3.Error as error:
        return fail("spool", f"{path} cannot be read: {error}", "fieldlm serve sets a damaged one aside and goes on")
    if dropped:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dropped.items()))
        return warn("spool", f"records given up: {reasons}", f"see the broker; FIELDLM_SPOOL_MB={2 * spool_mb}")
    return ok("spool", f"{counted(waiting, 'record')} waiting, {path.stat().st_size / 1e6:.1f} of {spool_mb} MB")


def _look_into(path: Path) -> tuple[int, dict[str, int]]:
    with contextlib.closing(connect_read_only(path)) as database:
        (waiting,) = database.execute("SELECT count(*) FROM records").fetchone()
        return waiting, dict(database.execute("SELECT reason, records FROM dropped WHERE records > 0"))


def check_port(config: Config) -> Finding:
    """Free is good, and so is a server of ours, on the network or on its socket; anything else is in the way."""
    try:
        server = own_server(config, key="", timeout_s=2)
        if server.get("/health")[0] == OK:
            return ok("port", f"a server on {server.url} says it is healthy")
        reason = "what listens there is not healthy"
    except NobodyAnswersError:
        reason = ""
    except FieldlmError as error:
        reason = str(error)
    where = f"{config.host}:{config.port}" if config.host != NO_NETWORK else config.socket
    if not reason and config.host != NO_NETWORK:
        try:
            with socket.create_server(
                (config.host, config.port), family=socket.AF_INET6 if ":" in config.host else socket.AF_INET
            ):
                pass
        except OSError as error:
            reason = error.strerror or str(error)
    if reason:
        return fail("port", f"{where} cannot be used: {reason}", "FIELDLM_PORT=8081, or stop what holds it")
    return ok("port", f"{where} is free")


def check_broker(url: str) -> Finding:
    parts = urlsplit(url)
    port = parts.port or (8883 if parts.scheme == "mqtts" else 1883)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=3):
            return ok("broker", f"{parts.hostname}:{port} accepts connections")
    except OSError as error:
        reason = error.strerror or str(error)
    return fail(
        "broker", f"{parts.hostname}:{port}: {reason}; records wait in the spool", "start it, or see: fieldlm config"
    )


def check_trust(config: Config) -> Finding:
    if not config.trust:
        return fail(
            "updates", "repository is set and trust is not", "FIELDLM_TRUST=/path/of/root.json from who publishes"
        )
    return ok("updates", f"{shown(config.repository)}, vouched for by {config.trust}")
