"""Charts: what they show is where and as large as it should be, and well-formed whatever its words are."""

import xml.etree.ElementTree as ET

import pytest

from fieldlm.core.charts import Dot, Scale, Svg, bar, columns, plot

HOSTILE = "\"'</svg><script>&amp;"


def shapes(drawn: Svg, tag: str) -> list[dict[str, str]]:
    return [each.attrib for each in ET.fromstring(drawn.__html__()).iter(tag)]


def test_the_parts_of_a_bar_follow_each_other_and_fill_their_share() -> None:
    parts = shapes(bar("b", [("wait", 1.0), ("read", 3.0)], whole=8.0), "rect")
    assert [(each["class"], float(each["x"]), float(each["width"])) for each in parts] == [
        ("wait", 0.0, 12.5),
        ("read", 12.5, 37.5),
    ]


def test_a_bar_of_nothing_is_empty() -> None:
    assert [each["width"] for each in shapes(bar("b", [("wait", 0.0)], whole=0), "rect")] == ["0.00"]


def test_the_highest_column_is_as_high_as_the_picture_and_stands_on_the_ground() -> None:
    drawn = shapes(columns("c", [("one", [("wait", 1.0), ("read", 3.0)]), ("two", [("wait", 2.0)])]), "rect")
    spans = [(float(each["y"]), float(each["height"])) for each in drawn]
    assert spans == [(75.0, 25.0), (0.0, 75.0), (50.0, 50.0)]
    assert shapes(columns("none", []), "rect") == []


def test_a_logarithmic_scale_gives_each_factor_the_same_room() -> None:
    scale = Scale(low=1e-4, high=1.0, ticks=(), is_log=True)
    assert [scale.at(value) for value in (1e-4, 1e-2, 1.0)] == pytest.approx([0.0, 0.5, 1.0])
    assert (scale.at(0.0), scale.at(7.0)) == (0.0, 1.0)
    assert Scale(low=3.0, high=3.0, ticks=()).at(3.0) == 0.0


def test_the_words_of_a_mark_stay_in_the_picture() -> None:
    x = Scale(low=0.0, high=1.0, ticks=())
    drawn = plot("p", x, x, marks=[(0.0, "left"), (0.5, "middle"), (1.0, "right")])
    assert [each["text-anchor"] for each in shapes(drawn, "text")] == ["start", "middle", "end"]


def test_the_words_of_dots_beside_each_other_are_apart() -> None:
    x = Scale(low=0.0, high=1.0, ticks=())
    dots = [Dot(x=at, y=0.5, kind="old", words="w", is_below=is_below) for at, is_below in ((0.4, True), (0.41, False))]
    below, above = shapes(plot("p", x, x, dots=dots), "text")
    assert (below["text-anchor"], above["text-anchor"]) == ("end", "start")
    assert float(below["y"]) - float(above["y"]) == 27.0
    (edge,) = shapes(plot("p", x, x, dots=[Dot(x=0.1, y=0.5, kind="old", words="w", is_below=True)]), "text")
    assert edge["text-anchor"] == "start", "or it would leave the picture"


def test_hostile_words_are_text_in_every_place_that_takes_words() -> None:
    x = Scale(low=0.0, high=1.0, ticks=((0.0, HOSTILE),))
    drawn = plot(HOSTILE, x, x, dots=[Dot(x=0.5, y=0.5, kind="new", words=HOSTILE)], marks=[(0.5, HOSTILE)])
    texts = [each.text for each in ET.fromstring(drawn.__html__()).iter("text")]
    assert texts == [HOSTILE] * 4
    assert ET.fromstring(columns(HOSTILE, [(HOSTILE, [])]).__html__()).get("aria-label") == HOSTILE
