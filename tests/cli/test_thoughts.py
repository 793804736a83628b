"""On a terminal, what a model thinks is beside what it answers: what is piped on is the answer."""

from collections.abc import Generator

import pytest

from fieldlm.cli.conversation import Piece, write_out


def test_thoughts_go_to_stderr_and_are_no_part_of_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    def pieces() -> Generator[Piece]:
        yield Piece(thought="hm")
        yield Piece(thought=" so")
        yield Piece(text="Ye")
        yield Piece(text="s", outcome="stop", tokens=4)

    said = write_out(pieces())
    heard = capsys.readouterr()
    assert (heard.out, heard.err) == ("Yes\n", "hm so\n\n")
    assert (said.text, said.thought, said.tokens) == ("Yes", "hm so", 4)
