"""Whole files, and whose they are."""

import os
import pwd
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

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
