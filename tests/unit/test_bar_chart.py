"""Bar charts: number, height and place of the bars, texts for screen readers, and no text that becomes markup."""

from xml.etree.ElementTree import Element, fromstring

from hypothesis import given
from hypothesis import strategies as st

from worker.web.bar_chart import HEIGHT, WIDTH, Bar, bar_chart

CLASSES = ("good", "bad")
SPACE = "{http://www.w3.org/2000/svg}"
NASTY = "</title><script>alert(1)</script>\"'&"


def rects(svg: str) -> list[Element]:
    """The bars' rectangles, without the base line."""
    return [each for each in fromstring(svg).iter("rect") if each.get("class") in CLASSES]  # noqa: S314 - our own


def chart(*bars: Bar, slots: int = 60) -> str:
    return bar_chart("messages", "Messages", "One bar a minute.", bars, CLASSES, slots)


def test_bars_grow_from_the_base_and_the_newest_is_at_the_right() -> None:
    """The highest bar takes the whole height, half as much takes half; the parts are stacked."""
    low, high, failed = rects(chart(Bar((5.0, 0.0), "low"), Bar((8.0, 2.0), "high"), slots=4))
    assert [each.get("class") for each in (low, high, failed)] == ["good", "good", "bad"]
    full = HEIGHT - 1
    assert float(low.get("height", 0)) == full / 2
    assert float(high.get("height", 0)) + float(failed.get("height", 0)) == full
    assert float(failed.get("y", 1)) == 0
    assert [float(each.get("x", 0)) for each in (low, high)] == [WIDTH / 2, WIDTH * 3 / 4]


def test_a_small_number_is_visible_and_zero_is_not() -> None:
    """One failure among thousands has its own part; an empty minute has no bar."""
    assert len(rects(chart(Bar((100_000.0, 1.0), "much"), Bar((0.0, 0.0), "none")))) == 2
    assert min(float(each.get("height", 0)) for each in rects(chart(Bar((100_000.0, 1.0), "much")))) >= 1
    assert rects(chart(Bar((0.0, 0.0), "none"))) == []
    assert rects(chart()) == []


def test_only_the_newest_are_drawn() -> None:
    """The oldest bars, at the left, are left out."""
    bars = [Bar((float(number),), str(number)) for number in range(1, 6)]
    svg = bar_chart("k", "t", "d", bars, ("good",), slots=3)
    assert [each.text for each in fromstring(svg).iter("title")] == ["t", "3", "4", "5"]  # noqa: S314


def test_it_has_texts_for_screen_readers() -> None:
    """An image with a title and a description, each bar with its own text; estimates are marked."""
    root = fromstring(chart(Bar((1.0, 0.0), "10:03: about 1 sent", pale=True)))  # noqa: S314
    assert root.get("role") == "img"
    ids = {each.get("id"): each.text for each in root.iter() if each.get("id")}
    assert [ids[name] for name in root.get("aria-labelledby", "").split()] == ["Messages", "One bar a minute."]
    (group,) = root.iter("g")
    assert (group.get("class"), group.findtext("title")) == ("pale", "10:03: about 1 sent")


def test_text_stays_text() -> None:
    """No text in a chart becomes an element or an attribute."""
    svg = bar_chart("k", NASTY, NASTY, [Bar((1.0,), NASTY)], ("good",))
    assert "<script" not in svg
    root = fromstring(svg)  # noqa: S314
    assert [each.text for each in root.iter("title")] == [NASTY, NASTY]
    assert not [name for each in root.iter() for name in each.keys() if name.startswith("on")]  # noqa: SIM118


@given(st.lists(st.tuples(st.floats(0, 1e9), st.floats(0, 1e9)), max_size=80))
def test_nothing_leaves_the_picture(numbers: list[tuple[float, float]]) -> None:
    """No bar is outside of it, whatever the numbers are."""
    for each in rects(chart(*(Bar(parts, "") for parts in numbers))):
        left, top, width, height = (float(each.get(name, -1)) for name in ("x", "y", "width", "height"))
        assert left >= 0
        assert left + width <= WIDTH
        assert top >= 0
        assert 0 < height <= HEIGHT
