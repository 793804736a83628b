"""Make runtime/fieldlm/telemetry/redaction/known_names.txt out of mimesis's data, which is MIT.

    python packaging/make_name_lists.py MIMESIS_DATASETS WORDS… > runtime/fieldlm/telemetry/redaction/known_names.txt

MIMESIS_DATASETS is the folder `mimesis/datasets` of an installed mimesis (22.2), WORDS are files with a word a line
(Debian's wamerican) that are everyday words where they stand in lower case. A name is taken word by word, in lower
case. "+" are first names that are nothing else: no everyday word, no town. "=" are last names of that kind, "~" the
rest, which names somebody only beside another capitalised word.
"""

import json
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

HEADER = """# Names of people, word by word. Made by packaging/make_name_lists.py from mimesis 22.2 (MIT license,
# Copyright (c) 2016-Present Isaak Uchakaev (Likid Geimfari) <hey@isaak.dev>), whose notice this is:
# Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated
# documentation files (the "Software"), to deal in the Software without restriction, including without limitation the
# rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell copies of the Software, and to permit
# persons to whom the Software is furnished to do so, subject to the following conditions: The above copyright notice
# and this permission notice shall be included in all copies or substantial portions of the Software. THE SOFTWARE IS
# PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF
# MERCHANTABILITY, FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT
# HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE,
# ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE SOFTWARE."""


def texts(value: Any) -> Iterator[str]:
    """Yield every string in a JSON value."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in cast(dict[str, Any], value).values():
            yield from texts(item)
    elif isinstance(value, list):
        for item in cast(list[Any], value):
            yield from texts(item)


def words(value: Any) -> Iterator[str]:
    """Yield the words of every string, in lower case; initials and what is no word are left out."""
    for text in texts(value):
        for word in text.replace("ʼ", "’").casefold().split():
            if word.replace("-", "").replace("'", "").replace("’", "").isalpha() and (len(word) > 2 or word > "ͽ"):
                yield word


def main(argv: list[str]) -> int:
    folder, everyday = Path(argv[0]), set[str]()
    for file in argv[1:]:
        lines = Path(file).read_text(encoding="utf-8").split("\n")
        everyday |= {line for line in lines if line and line == line.casefold() and "'" not in line}
    given, family, places, said = Counter[str](), set[str](), set[str](), set[str]()
    for file in sorted(folder.glob("*/person.json")):
        person = json.loads(file.read_bytes())
        given.update(set(words(person.get("names"))))
        family |= set(words(person.get("surnames")))
        places |= set(words(person.get("nationality"))) | set(words(person.get("language")))
    for file in sorted(folder.glob("*/address.json")):
        address = json.loads(file.read_bytes())
        for key in ("city", "state", "country", "continent"):
            places |= set(words(address.get(key)))
    for file in sorted(folder.glob("*/text.json")):
        said |= {word for word in texts(json.loads(file.read_bytes()).get("words")) if word == word.casefold()}
    # mimesis's words of a language hold names, too: what is one in three countries is one for all that.
    alone = {name for name, count in given.items() if count >= 3 or name not in said} - everyday - places
    surnames = family - everyday - alone - places - said
    rest = (given.keys() | family) - everyday - alone - surnames
    print(HEADER)
    for mark, found in (("+", alone), ("=", surnames), ("~", rest)):
        for line in textwrap.wrap(" ".join(sorted(found)), 116, break_long_words=False, break_on_hyphens=False):
            print(mark, line)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
