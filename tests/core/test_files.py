"""Whole files, and whose they are."""

import os
import pwd
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from fieldlm.core.files import whole_folder

MAKE = """
import sys
from pathlib import Path
from fieldlm.core.files import act_as_owner, write_whole

act_as_owner(Path(sys.argv[1]))
write_whole(Path(sys.argv[1]) / "deep/made", b"x")
"""


def test_what_root_makes_in_a_services_folder_belongs_to_the_folders_owner() -> None:
    folder = Path(tempfile.mkdtemp())  # not pytest's, which only root may enter
    try:
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam("nobody").pw_uid, -1)
        subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True, timeout=60)
        assert {path.stat().st_uid for path in folder.rglob("*")} == {folder.stat().st_uid}
    finally:
        shutil.rmtree(folder)


ON_A_SMALL_DISK = """
import os, sys
from pathlib import Path
from fieldlm.blobs.store import Blobs
from fieldlm.core.errors import NoSpaceError
from fieldlm.core.files import link_or_copy

disk, source = Path(sys.argv[1]), Path(sys.argv[2])
left = disk / "blobs/sha256/ab/.abcd.99.part"
left.parent.mkdir(parents=True)
left.write_bytes(b"x" * 1000)
bundle = [(source, "cd" * 32, 3 << 20)]
for step in (lambda: link_or_copy(source, disk / "copy"), lambda: Blobs(disk).make_room(bundle)):
    try:
        step()
    except NoSpaceError as error:
        print(error)
print(sorted(path.name for path in disk.rglob("*") if path.is_file()))
"""


def test_what_does_not_fit_is_refused_with_its_size_before_it_is_written(tmp_path: Path) -> None:
    (disk := tmp_path / "disk").mkdir()
    (source := tmp_path / "source").write_bytes(bytes(3 << 20))
    run = shlex.join([sys.executable, "-c", ON_A_SMALL_DISK, str(disk), str(source)])
    mounted = f"mount -t tmpfs -o size=2m tmpfs {shlex.quote(str(disk))} && {run}"
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "sh", "-c", mounted],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    first, second, files = done.stdout.splitlines() or [done.stderr]
    assert "copy needs 3.1 MB and 2 MB are free" in first
    assert "needs 3.1 MB and 2 MB are free" in second
    assert files == "[]", "neither a part of the copy nor what a crash had left"


def test_a_folder_behind_a_link_is_replaced_and_the_link_stays(tmp_path: Path) -> None:
    """That is how people lay out their disks: `current` points to a folder on another one."""
    (tmp_path / "disk" / "real").mkdir(parents=True)
    (tmp_path / "current").symlink_to(tmp_path / "disk" / "real")
    with whole_folder(tmp_path / "current") as aside:
        (aside / "made").write_text("x")
    assert (tmp_path / "current").is_symlink()
    assert (tmp_path / "disk" / "real" / "made").read_text() == "x"
    assert sorted(path.name for path in (tmp_path / "disk").iterdir()) == ["real"]
