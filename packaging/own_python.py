"""Put a Python into the package, with the C library and all else that it loads, for systems that have another one.

Debian's own, unpacked and not run, so that any machine can do it for any architecture. It lies in /opt/fieldlm/python:
the program and the loader in bin, libraries in lib, and Python's modules in lib/python3.N. The loader is told where the
libraries are, and tells nobody else: what fieldlm starts of the system's programs takes the system's.
"""

import os
import platform
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import debian

HOME = "/opt/fieldlm"
PACKAGES = (f"python{debian.MINOR}", "libgomp1", "libstdc++6")
"""What is unpacked, with all that they depend on; the last two are llama.cpp's."""
LIBRARY = re.compile(r"\./(?:usr/)?lib(?:64)?/(?:[^/]+-linux-gnu/)?([^/]+\.so[.\d]*)")
SHARED = re.compile(r"\.so[.\d]*$")
NEEDED = re.compile(r"\(NEEDED\).*\[(.+)\]$", re.MULTILINE)
LOADER = re.compile(r"ld-linux[\w.-]*\.so\.\d")
LIBC_VERSION = re.compile(rb"release version (\d+)\.(\d+)")
LEFT_OUT = (
    "antigravity.py", "distutils", "doctest.py", "ensurepip", "idlelib", "lib2to3", "pydoc.py", "pydoc_data", "test",
    "tkinter", "turtle.py", "turtledemo", "unittest", "venv", "xmlrpc",
)  # fmt: skip
"""Of Python's modules: what no device needs."""
LANDMARKS = ("os.pyc", "lib-dynload")
"""By what Python finds that its modules are there; all others may lie in a zip file."""
LEFT_OUT_LIBRARIES = re.compile(r"(_curses|_dbm|_test|_tkinter|_xx|nis|ossaudiodev|readline|xx)")
WRAPPER = """\
#!/bin/sh
# Python, the C library and all else lie beside it: the system's may be older, and its Python any.
here={home}/python
exec $here/bin/{loader} --library-path $here/lib --argv0 {home}/bin/python3 $here/bin/{python} "$@"
"""


def bring(home: Path, packages: Path, work: Path, architecture: str) -> None:
    """Put Python and what it and the libraries in `packages` load below `home`, and have `home` start with it."""
    own = home / "python"
    tree = unpacked(work, architecture)
    with tarfile.open(tree) as archive:
        take_python(archive, own)
        loader = take_libraries(archive, own, packages)
        take_licences(archive, own)
    tree.unlink()
    check_libc(own / "lib")
    python = f"python{debian.MINOR}"
    (home / "bin" / "python3").unlink(missing_ok=True)
    (home / "bin" / "python3").write_text(WRAPPER.format(home=HOME, loader=loader, python=python))
    settings = (home / "pyvenv.cfg").read_text()
    (home / "pyvenv.cfg").write_text(settings.replace("home = /usr/bin\n", f"home = {HOME}/python/bin\n"))


def unpacked(work: Path, architecture: str) -> Path:
    """Return an archive of PACKAGES and what they depend on, of the Debian that has this Python."""
    tree = work / "python.tar"
    options = ["--variant=extract", "--format=tar", f"--architectures={architecture}"]
    options += [f"--include={','.join(PACKAGES)}"]
    try:
        subprocess.run(
            ["mmdebstrap", "--quiet", *options, debian.suite(), tree, *debian.sources()],
            check=True,
            stdout=sys.stderr,
        )
    except FileNotFoundError:
        raise SystemExit("bringing a Python needs mmdebstrap; run: sudo apt install mmdebstrap") from None
    return tree


def take_python(archive: tarfile.TarFile, own: Path) -> None:
    """Write the program and its modules."""
    program = f"./usr/bin/python{debian.MINOR}"
    write(archive, archive.getmember(program), own / "bin" / Path(program).name)
    modules = f"./usr/lib/python{debian.MINOR}/"
    for member in archive:
        name = member.name.removeprefix(modules)
        # A link to a whole path leads to settings of the system's own Python.
        if name == member.name or member.isdir() or member.linkname.startswith("/"):
            continue
        first, _, rest = name.partition("/")
        if first in LEFT_OUT or (first == "lib-dynload" and LEFT_OUT_LIBRARIES.match(rest)):
            continue
        write(archive, member, own / "lib" / f"python{debian.MINOR}" / name)


def take_libraries(archive: tarfile.TarFile, own: Path, packages: Path) -> str:
    """Write every library that Python, its modules or those in `packages` name; return the loader's name."""
    there: dict[str, tarfile.TarInfo] = {}
    for member in archive:
        found = LIBRARY.fullmatch(member.name)
        if found and not member.isdir() and not member.linkname.startswith("/"):
            there[found[1]] = member
    # They find those that they brought themselves.
    own_libraries, theirs = list(shared(own)), list(shared(packages))
    (program,) = (own / "bin").iterdir()
    wanted = needed([program, *own_libraries, *theirs])
    loader = ""
    taken = {path.name for path in theirs}
    while missing := wanted - taken:
        for name in sorted(missing):
            if name not in there:
                raise SystemExit(f"{name} is needed, and in none of Debian's {', '.join(PACKAGES)}")
            if LOADER.fullmatch(name):
                loader = name
            path = own / ("bin" if name == loader else "lib") / name
            write(archive, there[name], path)
            wanted |= needed([path])
        taken |= missing
    return loader


def take_licences(archive: tarfile.TarFile, own: Path) -> None:
    """Write the licences of all that is in the archive, each text once."""
    written: dict[bytes, Path] = {}
    for member in archive:
        if member.isfile() and re.fullmatch(r"\./usr/share/doc/[^/]+/copyright", member.name):
            path = own / member.name.removeprefix("./usr/")
            write(archive, member, path)
            same = written.setdefault(path.read_bytes(), path)
            if same != path:
                path.unlink()
                path.symlink_to(Path("..", same.parent.name, same.name))


def shared(folder: Path) -> Iterator[Path]:
    """Yield the shared libraries below `folder`."""
    return (path for path in folder.rglob("*.so*") if SHARED.search(path.name))


def needed(paths: Iterable[Path]) -> set[str]:
    """Return the names of the libraries that those in `paths` are linked with."""
    command = ["readelf", "--dynamic", "--wide", *paths]
    said = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"})
    return set(NEEDED.findall(said.stdout))


def write(archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    """Write what `member` is, or leads to within the archive, as a file."""
    data = archive.extractfile(member)
    assert data, f"{member.name} is no file"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.read())


def check_libc(libraries: Path) -> None:
    """End the program where llama.cpp was compiled for a newer C library than the one that is brought."""
    found = LIBC_VERSION.search((libraries / "libc.so.6").read_bytes())
    brought = tuple(int(number) for number in found.groups()) if found else ()
    here = tuple(int(number) for number in platform.libc_ver()[1].split("."))
    if brought < here:
        name = ".".join(str(number) for number in here)
        raise SystemExit(
            f"llama.cpp compiled here needs this machine's C library {name}, newer than that of {debian.suite()}; "
            f"build on {debian.suite()}"
        )
