"""Wording of messages: a count and what is counted, in the number that it has."""


def counted(number: int, one: str, many: str = "") -> str:
    """Return "1 file", "2 files", "1,200 records": `many` where the plural is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"
