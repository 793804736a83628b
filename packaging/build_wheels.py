"""Build dist/wheels: the device half and all that it needs, so that a device compiles nothing and asks nobody.

The wheel of llama-cpp-python holds each of llama.cpp's libraries six times: under three names, since a wheel has no
links, and in CMake's install tree once more. Here each is kept once, under the name by which it is opened.
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import build_engine

ROOT = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> int:
    """Build the wheels and print their folder."""
    arguments = argparse.ArgumentParser(description="Build the wheels of the device half and of all that it needs.")
    arguments.add_argument("--out", type=Path, default=ROOT / "dist" / "wheels", help="folder of the wheels, emptied")
    build_engine.add_options(arguments)
    given = arguments.parse_args(argv)
    out, options = given.out.resolve(), build_engine.sources(given)
    shutil.rmtree(out, ignore_errors=True)
    build_engine.run_pip("wheel", "--no-deps", "--wheel-dir", out, ROOT)
    collect(out, options)
    for wheel in out.glob("llama_cpp_python-*.whl"):
        build_engine.slim(wheel)
    print(out)
    return 0


def collect(out: Path, options: Sequence[str | Path]) -> None:
    """Put what the wheel of the device half in `out` needs beside it; `options` say for which machine."""
    (half,) = out.glob("fieldlm-*.whl")
    is_foreign = any(str(option).startswith("--platform") for option in options)
    # Only `download` takes another machine's wheels, only `wheel` makes one of what comes as source.
    command = ["download", "--dest"] if is_foreign else ["wheel", "--wheel-dir"]
    build_engine.run_pip(*command, out, *options, half)


if __name__ == "__main__":
    sys.exit(main())
