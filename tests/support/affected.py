"""Print the Python files that differ from the main branch, and those that import one of them: what to check first.

python -m tests.support.affected [main] | xargs pyright
"""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PLACES = {"runtime": ROOT / "runtime", "compiler": ROOT / "compiler", "tests": ROOT, "benchmarks": ROOT}


def git(*arguments: str) -> list[str]:
    return subprocess.run(["git", "-C", ROOT, *arguments], check=True, capture_output=True, text=True).stdout.split()


def changed(main: str) -> set[Path]:
    """Return what was changed since the branch left `main`, committed or not, and what is new."""
    (base,) = git("merge-base", main, "HEAD")
    names = git("diff", "--name-only", "--diff-filter=d", base, "--", "*.py")
    return {ROOT / name for name in [*names, *git("ls-files", "--others", "--exclude-standard", "--", "*.py")]}


def module_of(path: Path) -> str:
    place = PLACES.get(path.relative_to(ROOT).parts[0], ROOT)
    parts = path.relative_to(place).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def affected(main: str) -> list[Path]:
    """Return the changed files and those that import one of them."""
    mine = changed(main)
    modules = {module_of(path) for path in mine}
    all_files = [path for top in (*PLACES, "packaging") for path in (ROOT / top).rglob("*.py")]
    return sorted(mine | {path for path in all_files if modules & imported(path)})


if __name__ == "__main__":
    for path in affected(sys.argv[1] if len(sys.argv) > 1 else "main"):
        print(path.relative_to(ROOT))
