"""Schemas at random, and texts that their grammars let a model write: byte by byte, so that no vocabulary is needed."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from fieldlm.engines import Engine
from fieldlm.engines.constraint import CompiledRule, Grammars, Rule

END = 256
MOST_BYTES = 400  # of a text; whoever has not ended by then is given up
NAMES = ("a", "b", "c d", "é", 'A"B', "x/y", "~0", "")
CLOSERS = b'"]},'
PATTERNS = (
    "^[a-c]{1,3}$", "^\\d+$", "^\\w*$", "^(foo|bar)$", "x", "^a", "z$", "^\\S+$", "^[^a-y]+$", "^.{2,4}$", "^\\s?b$",
    "[0-9]{2}", "^(ab)*$", "^$", "^-?(0|[1-9]\\d*)(\\.\\d+)?$", "^[A-Z]{2}-\\d{3}$", "\\.", "^[\\w.]+@[\\w.]+$",
)  # fmt: skip
FORMATS = ("date", "ipv4", "ipv6", "uuid", "email", "date-time", "time", "int32", "password")


class ByteEngine:
    """What `Grammars` asks an engine: a vocabulary of the 256 bytes, and a token that ends."""

    stop_tokens = frozenset({END})

    def vocabulary(self) -> Sequence[bytes]:
        return [*(bytes([byte]) for byte in range(256)), b""]

    def tokenize(self, text: str) -> list[int]:
        return list(text.encode())


def byte_grammars() -> Grammars:
    return Grammars(cast(Engine, ByteEngine()))


def compiled(known: Grammars, schema: Any) -> CompiledRule:
    """Return the grammar of `schema`; raises InputError for one that is refused."""
    return known.compile(Rule("json_schema", json.dumps(schema)))


def written(rule: CompiledRule, chance: random.Random) -> str | None:
    """Return a text that `rule` lets be written, or None where it has no end soon."""
    guide, text = rule.guide(), bytearray()
    flat = np.zeros(END + 1, np.float32)
    while len(text) < MOST_BYTES:
        forced = guide.forced()
        allowed = [forced[0]] if forced else [int(token) for token in np.flatnonzero(np.isfinite(guide.allow(flat)))]
        if not allowed or allowed == [END]:
            break
        ends = [token for token in allowed if token == END or token in CLOSERS]
        plain = [token for token in allowed if 32 <= token < 127] or allowed
        # Mostly what one can read, and soon an end; now and then any byte.
        token = chance.choice(ends if ends and chance.random() < 0.4 else plain if chance.random() < 0.9 else allowed)
        if token == END:
            break
        guide.accept(token)
        text.append(token)
        if guide.is_complete:
            break
    else:
        return None
    try:
        found = text.decode()
    except UnicodeDecodeError:
        return None
    return found if rule.accepts(found) else None


@dataclass
class SchemaMaker:
    """Schemas out of the keywords that are honoured, some of them at odds with each other."""

    chance: random.Random

    def schema(self, depth: int = 3) -> dict[str, Any]:
        kinds = [self._text, self._number, self._values, self._plain]
        if depth:
            kinds += [self._array, self._object, self._object, self._combined, self._referring]
        made = self.chance.choice(kinds)(depth)
        if self._now(0.1):
            made["description"] = "said"
        if self._now(0.05):
            made["nullable"] = self._now(0.5)
        return made

    def value(self, depth: int = 2) -> Any:
        """Return any JSON value, of the kind that schemas here are about."""
        chance = self.chance
        leaves = [None, True, False, 0, 1, -1, 7, 1.5, 100, "", "a", "ab", "foo", "12", "2024-02-30", "é", "x" * 6]
        if not depth or self._now(0.5):
            return chance.choice(leaves)
        if self._now(0.5):
            return [self.value(depth - 1) for _ in range(chance.randrange(4))]
        return {name: self.value(depth - 1) for name in chance.sample(NAMES, chance.randrange(4))}

    def _now(self, likely: float) -> bool:
        return self.chance.random() < likely

    def _bounds(self, least: str, most: str, high: int) -> dict[str, Any]:
        low = self.chance.randrange(high)
        made: dict[str, Any] = {}
        if self._now(0.4):
            made[least] = low
        if self._now(0.4):
            made[most] = low + self.chance.randrange(high)
        return made

    def _text(self, _: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "string", **self._bounds("minLength", "maxLength", 6)}
        if self._now(0.4):
            made["pattern"] = self.chance.choice(PATTERNS)
        if self._now(0.2):
            made["format"] = self.chance.choice(FORMATS)
        return made

    def _number(self, _: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": self.chance.choice(["integer", "number"])}
        low = self.chance.choice([-100, -3, 0, 0.5, 1, 7, 99.25])
        if self._now(0.4):
            made[self.chance.choice(["minimum", "exclusiveMinimum"])] = low
        if self._now(0.4):
            made[self.chance.choice(["maximum", "exclusiveMaximum"])] = low + self.chance.choice([0, 1, 2.5, 40, 1e6])
        if self._now(0.15):
            made["multipleOf"] = self.chance.choice([1, 2, 5, 0.5, 0.25, 0.01])
        return made

    def _values(self, _: int) -> dict[str, Any]:
        if self._now(0.3):
            return {"const": self.value()}
        return {"enum": [self.value() for _ in range(self.chance.randrange(1, 4))]}

    def _plain(self, _: int) -> dict[str, Any]:
        kinds = ["null", "boolean", "integer", "string"]
        return {"type": self.chance.sample(kinds, 2) if self._now(0.3) else self.chance.choice(kinds)}

    def _array(self, depth: int) -> dict[str, Any]:
        made: dict[str, Any] = {"type": "array", **self._bounds("minItems", "maxItems", 3)}
        if self._now(0.4):
            made["prefixItems"] = [self.schema(depth - 1) for _ in range(self.chance.randrange(1, 3))]
        made["items"] = self.schema(depth - 1) if self._now(0.8) else self._now(0.5)
        return made

    def _object(self, depth: int) -> dict[str, Any]:
        names = self.chance.sample(NAMES, self.chance.randrange(1, 4))
        made: dict[str, Any] = {"type": "object", "properties": {name: self.schema(depth - 1) for name in names}}
        if self._now(0.7):
            made["required"] = [name for name in NAMES if self._now(0.3)] if self._now(0.3) else names[:-1]
        if self._now(0.4):
            made["additionalProperties"] = self.schema(depth - 1) if self._now(0.5) else self._now(0.5)
        if self._now(0.15):
            made["patternProperties"] = {self.chance.choice(["^p", "x$", "^[a-c]$"]): self.schema(depth - 1)}
        if self._now(0.15):
            made |= self._bounds("minProperties", "maxProperties", 3)
        if self._now(0.1):
            made["propertyNames"] = {"pattern": "^[a-z]$"}
        return made

    def _combined(self, depth: int) -> dict[str, Any]:
        if self._now(0.3):
            # Told apart by a const. Others may fit two at once as open objects, and only their closing parts them.
            tags = [{"kind": {"const": tag}, "v": self.schema(depth - 1)} for tag in "xy"]
            return {"oneOf": [{"type": "object", "properties": tag, "required": ["kind"]} for tag in tags]}
        made = {self.chance.choice(["anyOf", "allOf"]): [self.schema(depth - 1) for _ in range(2)]}
        return {**self.schema(0), **made} if self._now(0.3) else made

    def _referring(self, depth: int) -> dict[str, Any]:
        inner = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}, "v": self.schema(depth - 1)}}
        return {"$defs": {"node": inner}, **self._object(depth)} if depth < 3 else {
            "$defs": {"node": inner}, "type": "object", "properties": {"a": {"$ref": "#/$defs/node"}},
        }  # fmt: skip
