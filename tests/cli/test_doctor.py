"""The doctor finds what is wrong and says what to do next."""

import json
import socket
import threading
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from fieldlm.cli import doctor
from fieldlm.cli.doctor import Finding
from fieldlm.core import extras
from fieldlm.core.config import Config, load_config
from fieldlm.formats.profile import load_profile
from fieldlm.formats.record import Record
from fieldlm.hardware.detect import detect
from fieldlm.telemetry.spool import Spool
from tests.support.machines import sysroot

PI5 = load_profile("rpi5-8gb")
NOW_S = 1_800_000_000.0


@pytest.fixture
def listener() -> Generator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("FIELDLM_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("FIELDLM_PORT", "0")
    return tmp_path


def test_an_old_python_fails() -> None:
    assert doctor.check_python((3, 10)).level == "fail"
    assert doctor.check_python((3, 11)).level == "ok"


def test_the_pinned_engine_is_installed_and_speaks_our_abi() -> None:
    pin, build = doctor.check_engine(detect().facts["isa"])
    assert pin == Finding(what="engine", level="ok", text=f"llama-cpp-python {doctor.pinned_engine()}")
    assert build.what == "build"


def test_a_gpu_that_is_promised_and_not_seen_fails_with_the_command() -> None:
    found = doctor.check_accelerator(load_profile("laptop-nvidia").accelerators[0])
    assert (found.what, found.level) == ("accelerator", "fail")
    assert found.text.endswith("is built without and sees only CPU here")
    assert "-DGGML_CUDA=on" in found.next


def test_another_engine_than_the_pinned_one_fails_with_the_command() -> None:
    found = doctor.check_pin("0.2.0", "0.3.36", "pip install …")
    assert (found.level, found.next) == ("fail", "pip install …")


def test_a_build_that_leaves_instructions_unused_is_a_warning() -> None:
    system = "CPU : SSE3 = 1 | AVX = 1 | F16C = 1 | FMA = 1 | AVX2 = 0 | REPACK = 1 | "
    found = doctor.check_build(system, ("avx2", "fma"), "reinstall")
    assert found.level == "warn"
    assert "the CPU has avx2, which this build leaves unused" in found.text
    assert doctor.check_build(system, ("fma", "f16c"), "reinstall").level == "ok"


def test_a_clock_that_is_behind_fails() -> None:
    assert doctor.check_clock(0.0, NOW_S).level == "fail"
    assert doctor.check_clock(NOW_S - 7 * 86_400, NOW_S).level == "fail"
    assert doctor.check_clock(NOW_S + 3600, NOW_S).level == "ok"


def test_a_clock_fifty_years_ahead_fails() -> None:
    found = doctor.check_clock(NOW_S + 50 * 365 * 86_400, NOW_S)
    assert (found.level, found.next) == ("fail", "timedatectl set-ntp true")


def test_a_profile_of_another_board_fails() -> None:
    pi, laptop = detect(sysroot("pi-5-8gb")), detect(sysroot("laptop-avx2-i3-1315u"))
    assert doctor.check_profile(PI5, pi, sysroot("pi-5-8gb")).level == "ok"
    assert doctor.check_profile(load_profile("generic-aarch64"), pi, sysroot("pi-5-8gb")).level == "ok"
    found = doctor.check_profile(PI5, laptop, sysroot("laptop-avx2-i3-1315u"))
    why = "linux on x86_64, not linux on aarch64"
    assert (found.level, found.text) == ("fail", f"rpi5-8gb does not fit, this is a laptop-avx2: {why}")


def test_a_profile_of_ones_own_is_held_against_the_machine(tmp_path: Path) -> None:
    path = tmp_path / "my-pi.toml"
    path.write_text('format = "fieldlm.profile/1"\nid = "my-pi"\ntitle = "Mine"\nvariant_of = "rpi5-8gb"\n')
    own = load_profile(str(path))
    assert doctor.check_profile(own, detect(sysroot("pi-5-8gb")), sysroot("pi-5-8gb")).level == "ok"
    laptop = sysroot("laptop-avx2-i3-1315u")
    assert doctor.check_profile(own, detect(laptop), laptop).level == "fail"


def test_what_is_worth_a_look_is_not_counted_as_passed() -> None:
    findings = [doctor.ok("a", ""), doctor.warn("b", "", ""), doctor.ok("c", "")]
    assert doctor.summary(findings) == "2 of 3 checks passed; look at those marked !"
    assert doctor.summary(findings[:1]) == "all 1 checks passed"


def test_a_generic_profile_is_a_warning() -> None:
    virtual = detect(sysroot("vm-x86-avx512"))
    assert doctor.check_profile(virtual.best, virtual).level == "warn"


def test_less_memory_than_the_budget_is_a_warning() -> None:
    assert doctor.check_memory(5999, PI5).level == "warn"
    assert doctor.check_memory(6000, PI5).level == "ok"


def test_a_budget_that_is_the_machines_own_is_not_asked_for_whole() -> None:
    desktop = detect(sysroot("desktop-avx2")).best
    assert desktop.memory.model_budget_mb == 12_000
    assert doctor.check_memory(8000, desktop).level == "ok"
    assert doctor.check_memory(2000, desktop).level == "warn"


def test_a_gpu_that_lies_idle_is_named_and_an_npu_of_others_is_not() -> None:
    (gpu,) = doctor.check_idle(detect(sysroot("workstation-rtx4090")).idle)
    assert (gpu.level, gpu.text) == ("warn", "NVIDIA GeForce RTX 4090 computes nothing")
    assert "-DGGML_CUDA=on" in gpu.next
    assert [found.level for found in doctor.check_idle(detect(sysroot("orangepi-5-4gb")).idle)] == ["ok"]
    assert list(doctor.check_idle(detect(sysroot("nanopi-m5-rk3576-8gb")).idle)) == []


def test_fewer_cores_than_threads_is_a_warning_with_the_setting() -> None:
    assert doctor.check_threads(2, PI5).next == "FIELDLM_THREADS=2"
    assert doctor.check_threads(4, PI5).level == "ok"


def test_heat_near_the_limit_is_a_warning() -> None:
    assert doctor.check_heat(71.0, PI5).level == "warn"
    assert doctor.check_heat(50.0, PI5).level == "ok"
    assert doctor.check_heat(None, PI5).text == "no sensor"


def test_a_budget_of_power_that_nothing_measures_is_a_warning(tmp_path: Path) -> None:
    found = doctor.check_power(7.5, tmp_path)
    assert found.level == "warn"
    assert "max_watts is 7.5" in found.text
    assert "no sensor of power is here" in found.text
    supply = tmp_path / "sys/class/power_supply/BAT0"
    supply.mkdir(parents=True)
    for name, said in (("type", "Battery"), ("status", "Discharging"), ("power_now", "6000000")):
        (supply / name).write_text(f"{said}\n")
    assert doctor.check_power(7.5, tmp_path).text == "up to 7.5 W of the whole machine, by battery"


def test_a_state_folder_that_cannot_be_written_fails(tmp_path: Path) -> None:
    assert doctor.check_state(tmp_path / "new/state").level == "ok"
    (tmp_path / "file").write_text("")
    assert doctor.check_state(tmp_path / "file").level == "fail"


def test_a_full_disk_fails_and_a_small_one_warns() -> None:
    assert [doctor.check_disk(free, 64).level for free in (100, 1000, 10_000)] == ["fail", "warn", "ok"]


def test_the_spool_tells_what_waits_and_what_was_given_up(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    assert doctor.check_spool(path, 1).text == "nothing recorded yet"
    with Spool(path, max_mb=1) as spool:
        spool.append(Record(device="k", stream="gen", kind="generation"))
        assert spool.flush(30)
        assert doctor.check_spool(path, 1).text.startswith("1 record waiting")
        spool.append(Record(device="k", stream="gen", kind="generation", answer="x" * 200_000))
    found = doctor.check_spool(path, 1)
    assert (found.level, found.text) == ("warn", "records given up: 1 too-large")
    assert found.next.endswith("FIELDLM_SPOOL_MB=2")


def test_a_damaged_spool_is_named_before_and_after_it_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(b"no database" * 1000)
    assert doctor.check_spool(path, 1).level == "fail"
    Spool(path).close()
    found = doctor.check_spool(path, 1)
    assert found.level == "warn"
    assert "spool.db.quarantine-" in found.text


def listening_on(port: int, host: str = "127.0.0.1") -> Config:
    return load_config({"device": "kiosk-1", "host": host, "port": port}, {"HOME": "/nowhere"})


def test_a_port_that_another_program_holds_fails(listener: int) -> None:
    found = doctor.check_port(listening_on(listener))
    assert found.level == "fail"
    assert f"127.0.0.1:{listener} cannot be used" in found.text


def test_a_free_port_is_fine() -> None:
    assert doctor.check_port(listening_on(0)).level == "ok"
    assert doctor.check_port(listening_on(0, host="::1")).level == "ok"


def test_a_port_where_a_healthy_server_answers_is_fine() -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}")

        def log_message(self, format: str, *args: object) -> None:
            return

    with HTTPServer(("127.0.0.1", 0), Healthy) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        found = doctor.check_port(listening_on(server.server_port))
        server.shutdown()
        thread.join()
    assert found.text.endswith("says it is healthy")


def test_a_broker_that_is_away_fails_and_one_that_listens_is_fine(listener: int) -> None:
    assert doctor.check_broker(f"mqtt://127.0.0.1:{listener}").level == "ok"
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    found = doctor.check_broker(f"mqtt://127.0.0.1:{port}")
    assert found.level == "fail"
    assert "records wait in the spool" in found.text


def test_updates_without_a_trusted_root_fail(home: Path) -> None:
    assert doctor.check_trust(load_config({"repository": "/srv/updates"})).level == "fail"
    root = home / "root.json"
    root.write_text("{}")
    assert doctor.check_trust(load_config({"repository": "/srv/updates", "trust": str(root)})).level == "ok"


@pytest.mark.usefixtures("home")
def test_on_this_machine_the_doctor_finds_nothing_broken(capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["passed"] is True
    looked_at = {finding["what"] for finding in document["findings"]}
    assert looked_at >= {"python", "engine", "build", "clock", "profile", "memory", "threads", "state", "disk", "port"}


@pytest.mark.usefixtures("home")
def test_a_failure_gives_exit_1_and_the_next_step(listener: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert doctor.main(["--port", str(listener)]) == 1
    shown = capsys.readouterr().out
    assert "✗ port" in shown
    assert "→ FIELDLM_PORT=8081" in shown


@pytest.mark.usefixtures("home")
def test_a_wrong_setting_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIELDLM_TELEMETRY", "all")
    last = list(doctor.examine({}))[-1]
    assert (last.what, last.level) == ("settings", "fail")
    assert "telemetry is 'all' (from FIELDLM_TELEMETRY)" in last.text


def test_an_installed_package_is_not_told_to_use_a_pip_that_it_has_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (flags := tmp_path / "cpu-flags").write_text("asimd\n")
    monkeypatch.setattr(extras, "PACKAGE_MARK", flags)
    *_, build = doctor.check_engine(tuple(doctor.BUILD_NAMES))
    assert (build.level, "make deb" in build.next, "pip" in build.next) == ("warn", True, False)
