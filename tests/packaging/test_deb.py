"""The .deb in a clean Debian: it installs, its command and its unit work, and it leaves without a trace."""

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

from fieldlm.formats.bundle import Bundle, open_bundle
from fieldlm_compiler.repository.publish import publish
from tests.support.debian_root import Machine
from tests.support.material import compiled_for, lora_gguf, tiny_bundle
from tests.support.packed import EVERY_HELP, EVERY_MODULE
from tests.support.served_process import ask, free_port, serving, updated

UNIT = "/usr/lib/systemd/system/fieldlm.service"
MOST_EXPOSED = 4.5  # systemd's measure, 0 to 10; the rest is what GPUs and serving a network need


def test_the_command_works_for_any_user(machine: Machine) -> None:
    assert machine.run("setpriv", "--reuid=nobody", "--clear-groups", "fieldlm", "--version").startswith("fieldlm ")
    assert "raspberry" in machine.run("fieldlm", "profiles").lower()


def test_every_module_imports_and_every_command_says_what_it_can(machine: Machine) -> None:
    for script in (EVERY_MODULE, EVERY_HELP):
        assert machine.run("/opt/fieldlm/bin/python3", "-I", "-c", script) == ""


def test_it_takes_70_mb(machine: Machine) -> None:
    size_kib = int(machine.run("dpkg-query", "--show", "--showformat=${Installed-Size}", "fieldlm"))
    assert size_kib * 1024 <= 70e6


def test_the_compiler_commands_say_what_to_install(machine: Machine) -> None:
    answer = machine.run("sh", "-c", "fieldlm compile x 2>&1 || echo exit $?")
    assert "pip install ./compiler" in answer
    assert answer.endswith("exit 2\n")


def test_running_it_writes_nothing_into_the_package(machine: Machine) -> None:
    machine.run("fieldlm", "detect")
    assert machine.run("dpkg", "--verify", "fieldlm") == ""
    owned = set(machine.run("dpkg", "-L", "fieldlm").split())
    assert set(machine.run("find", "/opt/fieldlm").split()) <= owned


def test_systemd_finds_no_fault_with_the_unit(machine: Machine) -> None:
    assert machine.run("sh", "-c", f"systemd-analyze verify --man=no {UNIT} 2>&1") == ""
    assert machine.run("systemctl", "is-enabled", "fieldlm.service") == "enabled\n"


def test_the_unit_leaves_little_exposed(machine: Machine) -> None:
    report = machine.run("systemd-analyze", "security", "--offline=true", "--no-pager", UNIT)
    (level,) = re.findall(r"Overall exposure level for fieldlm.service: ([\d.]+)", report)
    assert float(level) <= MOST_EXPOSED, report


def test_no_key_and_no_name_is_made_at_installation(machine: Machine) -> None:
    assert machine.run("find", "/var/lib/fieldlm", "/etc/fieldlm", "-type", "f").split() == ["/etc/fieldlm/config.toml"]


def test_a_booted_device_serves_under_the_units_restraints(machine: Machine, bundle: Bundle) -> None:
    shutil.copytree(bundle.folder, machine.root / "var/lib/fieldlm/factory", dirs_exist_ok=True)
    port = free_port()
    drop_in = machine.root / "etc/systemd/system/fieldlm.service.d/port.conf"
    drop_in.parent.mkdir(exist_ok=True)
    drop_in.write_text(f"[Service]\nEnvironment=FIELDLM_PORT={port}\n")
    url = f"http://127.0.0.1:{port}"
    with serving(machine.boot(), url):
        assert ask(url, "Say hello.")
        service = machine.process("fieldlm serve")
        assert service["Uid"].split()[0] == machine.run("id", "-u", "fieldlm").strip()
        assert (service["Seccomp"], service["NoNewPrivs"], int(service["CapBnd"], 16)) == ("2", "1", 0)
        # active, not activating: systemd has heard that it is ready
        inside = ["nsenter", f"--target={service['Pid']}", "--mount", "--pid"]
        assert subprocess.check_output([*inside, "systemctl", "is-active", "fieldlm"], text=True) == "active\n"
        waits = subprocess.check_output([*inside, "systemctl", "show", "-P", "After", "multi-user.target"], text=True)
        assert "basic.target" in waits
        assert "fieldlm.service" not in waits, "the boot does not wait for a model"
    shutil.rmtree(drop_in.parent)


def test_a_booted_device_takes_an_update_under_the_units_restraints(
    machine: Machine, bundle: Bundle, tmp_path: Path
) -> None:
    adapted = tiny_bundle(tmp_path / "adapted", adapter=lora_gguf(tmp_path / "lora.gguf", scale=0.05))
    offered = open_bundle(compiled_for(adapted, bundle.manifest.profile, tmp_path / "offered"))
    publish(offered.folder, tmp_path / "repository", keys=tmp_path / "keys")
    home = machine.root / "srv/update"
    shutil.copytree(tmp_path / "repository", home)
    shutil.copy(tmp_path / "keys/root.json", home)
    machine.run("chmod", "-R", "a+rX", "/srv/update")
    shutil.copytree(bundle.folder, machine.root / "var/lib/fieldlm/factory", dirs_exist_ok=True)
    port = free_port()
    drop_in = machine.root / "etc/systemd/system/fieldlm.service.d/update.conf"
    drop_in.parent.mkdir(exist_ok=True)
    settings = {"PORT": port, "REPOSITORY": "/srv/update", "TRUST": "/srv/update/root.json"}
    drop_in.write_text("[Service]\n" + "".join(f"Environment=FIELDLM_{k}={v}\n" for k, v in settings.items()))
    url = f"http://127.0.0.1:{port}"
    with serving(machine.boot(), url):
        assert updated(url)["outcome"] == "updated"
        assert ask(url, "Say hello.")
    shutil.rmtree(drop_in.parent)
    shutil.rmtree(home)


def test_an_upgrade_keeps_the_settings_and_the_models(machine: Machine, deb: Path) -> None:
    settings = machine.root / "etc/fieldlm/config.toml"
    kept = machine.root / "var/lib/fieldlm/kept"
    shipped = settings.read_text()
    settings.write_text('fleet = "north"\n')
    kept.touch()
    machine.install(deb)
    assert settings.read_text() == 'fleet = "north"\n'
    assert kept.exists()
    settings.write_text(shipped)


def test_it_installs_on_any_processor_and_says_on_the_device_what_that_one_lacks(
    machine: Machine, deb: Path, bundle: Bundle
) -> None:
    shutil.copy(deb, machine.root / "tmp/fieldlm.deb")
    shutil.copytree(bundle.folder, machine.root / "tmp/bundle")
    (machine.root / "tmp/cpuinfo").write_text("flags : fpu\n")
    script = "mount --bind /tmp/cpuinfo /proc/cpuinfo; dpkg --install /tmp/fieldlm.deb >&2; "
    answer = machine.run("sh", "-ec", script + "fieldlm run /tmp/bundle Hello 2>&1 || echo exit $?")
    if platform.machine() == "x86_64":
        assert "fieldlm run: this processor lacks ssse3, sse4_1, sse4_2, popcnt, which " in answer
        assert answer.endswith("exit 2\n")
    else:
        assert "exit" not in answer, "the least that there is of the architecture is enough"
    assert machine.run("fieldlm", "--version"), "what needs no engine still works"
    (machine.root / "tmp/fieldlm.deb").unlink()
    shutil.rmtree(machine.root / "tmp/bundle")


def test_removing_it_and_installing_it_again_leaves_it_as_it_was(machine: Machine, deb: Path) -> None:
    def state() -> str:
        return machine.run("sh", "-c", "systemctl is-enabled fieldlm.service || true").strip()

    for command in ("enable", "disable", "enable"):
        machine.run("systemctl", command, "fieldlm.service")
        machine.run("dpkg", "--remove", "fieldlm")
        machine.install(deb)
        assert state() == f"{command}d"


def test_the_commands_look_at_the_devices_own_state(machine: Machine) -> None:
    setting = json.loads(machine.run("fieldlm", "config", "--json"))["state"]
    assert setting == {"value": "/var/lib/fieldlm", "origin": "/etc/fieldlm/config.toml"}


def test_removing_keeps_what_the_owner_made_and_purging_leaves_nothing(machine: Machine) -> None:
    (machine.root / "var/lib/fieldlm/record").touch()
    machine.run("dpkg", "--remove", "fieldlm")
    assert not (machine.root / "opt").joinpath("fieldlm").exists()
    assert (machine.root / "etc/fieldlm/config.toml").exists()
    assert (machine.root / "var/lib/fieldlm/record").exists()
    machine.run("dpkg", "--purge", "fieldlm")
    assert machine.run("find", "/", "-xdev", "-name", "*fieldlm*") == ""
    assert "fieldlm" not in machine.run("getent", "passwd")
    assert "fieldlm" not in machine.run("getent", "group")
