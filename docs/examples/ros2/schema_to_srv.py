"""The service of a JSON schema: python schema_to_srv.py move.json > fieldlm_interfaces/srv/Decide.srv.

Flat objects: text, whole numbers, numbers, booleans, `enum` of texts, and arrays of these. ROS has no optional fields,
so every property is required. What a message cannot say is one clear line on stderr and exit code 2.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

TYPES = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool"}
NAME = re.compile(r"[a-z](?:_?[a-z0-9])*")
OWN = ("ok", "error")
HEAD = """# Written by schema_to_srv.py from {file}; the model can answer nothing else.
string question
float64 deadline_s    # 0: the node's own
---
bool ok               # false: no whole answer by then, and the fields below say nothing
string error
"""


def service_of(schema: dict[str, Any], file: str) -> str:
    """Return the text of the .srv file; raises ValueError for what a message cannot say."""
    if schema.get("type") != "object" or not schema.get("properties"):
        raise ValueError("the schema is no object with properties; wrap it in one")
    lines: list[str] = []
    for name, part in schema["properties"].items():
        if not NAME.fullmatch(name) or name in OWN:
            raise ValueError(f"{name!r} is no name of a field here; use small letters, digits and single underscores")
        if name not in schema.get("required", []):
            raise ValueError(f"{name!r} is not required, and a message has all of its fields; list it in `required`")
        lines.append(f"{_type(name, part)} {name}{_remark(part)}\n")
    return HEAD.format(file=file) + "".join(lines)


def _type(name: str, part: dict[str, Any]) -> str:
    if part.get("type") == "array" and isinstance(part.get("items"), dict):
        inner = _type(name, part["items"])
        if not inner.endswith("[]"):
            return inner + "[]"
    if "enum" in part and all(isinstance(value, str) for value in part["enum"]):
        return "string"
    if (found := TYPES.get(str(part.get("type")))) is None:
        raise ValueError(f"{name!r} is {json.dumps(part)[:60]}, which no field of a message is; flatten it")
    return found


def _remark(part: dict[str, Any]) -> str:
    if "enum" in part:
        return "      # " + ", ".join(map(json.dumps, part["enum"]))
    bounds = [str(part[bound]) for bound in ("minimum", "maximum") if bound in part]
    return "          # " + " to ".join(bounds) if len(bounds) == 2 else ""


def main(argv: list[str]) -> int:
    try:
        path = Path(argv[0])
        print(service_of(json.loads(path.read_text()), path.name), end="")
    except (IndexError, OSError, ValueError) as error:
        print(f"schema_to_srv: {error or 'name a file'}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
