"""Build dist/wheels: the device half and all that it needs, so that a device compiles nothing and asks nobody.

The wheel of llama-cpp-python holds each of llama.cpp's libraries six times: under three names, since a wheel has no
links, and in CMake's install tree once more. Here each is kept once, under the name by which it is opened.
"""

import argparse
import base64
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LIBRARY = re.compile(r"llama_cpp/lib/lib(?P<name>[\w-]+)\.so(?P<version>[.\d]*)")
OPENED = ("ggml", "llama", "mtmd")
"""Libraries that Python opens, as `libNAME.so`; the others, and ggml, are opened by these, as `libNAME.so.0`."""
LOADED = ("ggml", "ggml-base", "ggml-cpu")


def main(argv: Sequence[str] | None = None) -> int:
    """Build the wheels and print their folder."""
    arguments = argparse.ArgumentParser(description="Build the wheels of the device half and of all that it needs.")
    arguments.add_argument("--out", type=Path, default=ROOT / "dist" / "wheels", help="folder of the wheels, emptied")
    out = arguments.parse_args(argv).out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--wheel-dir", out, ROOT], check=True)
    for wheel in out.glob("llama_cpp_python-*.whl"):
        slim(wheel)
    print(out)
    return 0


def slim(wheel: Path) -> None:
    """Write `wheel` anew without what is there twice, and without headers."""
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as new:
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        lines: list[str] = []
        for each in old.infolist():
            if each.filename == record or not is_needed(each.filename):
                continue
            data = old.read(each)
            new.writestr(each, data, zipfile.ZIP_DEFLATED)
            # PEP 427: path, digest in URL-safe base64 without padding, size.
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            lines.append(f"{each.filename},sha256={digest},{len(data)}\n")
        new.writestr(record, "".join([*lines, f"{record},,\n"]))
    part.replace(wheel)


def is_needed(name: str) -> bool:
    """Say whether a device opens the file `name` of the wheel."""
    if name.startswith(("lib/", "include/", "bin/")):
        return False
    found = LIBRARY.fullmatch(name)
    if not found:
        return True
    plain, version = found["name"], found["version"]
    is_known = plain in OPENED or plain in LOADED
    wanted = {"": plain in OPENED or not is_known, ".0": plain in LOADED or not is_known}
    return wanted.get(version, False)


if __name__ == "__main__":
    sys.exit(main())
