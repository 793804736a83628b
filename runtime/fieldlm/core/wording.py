"""Wording of messages: a count and what is counted, in the number that it has; what others say, safe to be shown."""

_SHAPING = "\u00a0\u200c\u200d"  # a space that does not break, and what joins or parts letters and emoji


def counted(number: int, one: str, many: str = "") -> str:
    """Return "1 file", "2 files", "1,200 records": `many` where the plural is not `one` with an s."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def visible(text: str, *, keep: str = "\n\t") -> str:
    """Return `text` with what a terminal obeys instead of showing spelt out: it may come from another machine."""
    if text.isprintable():
        return text
    return "".join(
        each
        if each.isprintable() or each in keep or each in _SHAPING
        else each.encode("unicode_escape", "surrogatepass").decode()
        for each in text
    )
