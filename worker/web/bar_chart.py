"""Small bar charts as SVG, with titles and descriptions for screen readers.

The colours are classes of the page's style sheet, so a chart follows the page's theme. The SVG is built as a tree of
elements, so that no text can become markup.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree.ElementTree import Element, SubElement, tostring

WIDTH = 360.0
HEIGHT = 72.0
GAP = 1.0
SMALLEST_HEIGHT = 1.5  # everything above zero is visible


@dataclass(frozen=True)
class Bar:
    """One bar: ``parts`` are stacked from the bottom, one for each class of the chart."""

    parts: tuple[float, ...]
    text: str  # shown when the pointer is over it
    pale: bool = False  # it is an estimate


def bar_chart(
    key: str, title: str, description: str, bars: Sequence[Bar], classes: Sequence[str], slots: int = 60
) -> str:
    """An <svg> with the newest bar at the right; ``key`` makes its ids unique on the page.

    Only the newest ``slots`` bars are drawn; if there are fewer, the left side stays empty.
    """
    svg = Element(
        "svg",
        {
            "viewBox": f"0 0 {WIDTH:g} {HEIGHT:g}",
            "role": "img",
            "class": "chart",
            "aria-labelledby": f"{key}-title {key}-text",
            "preserveAspectRatio": "none",
        },
    )
    SubElement(svg, "title", {"id": f"{key}-title"}).text = title
    SubElement(svg, "desc", {"id": f"{key}-text"}).text = description
    shown = list(bars)[-slots:]
    highest = max((sum(bar.parts) for bar in shown), default=0.0)
    step = WIDTH / slots
    for place, bar in enumerate(shown, start=slots - len(shown)):
        if sum(bar.parts) > 0:
            _draw(svg, bar, classes, left=place * step, width=step - GAP, highest=highest)
    base = {"x": "0", "y": f"{HEIGHT - 1:g}", "width": f"{WIDTH:g}", "height": "1", "class": "base"}
    SubElement(svg, "rect", base)
    return tostring(svg, encoding="unicode")


def _draw(svg: Element, bar: Bar, classes: Sequence[str], *, left: float, width: float, highest: float) -> None:
    group = SubElement(svg, "g", {"class": "pale"} if bar.pale else {})
    SubElement(group, "title").text = bar.text
    below = HEIGHT - 1
    for amount, name in zip(bar.parts, classes, strict=True):
        if amount > 0:
            height = max(amount / highest * (HEIGHT - 1), SMALLEST_HEIGHT)
            below -= height
            place = {"x": f"{left:.2f}", "y": f"{max(below, 0):.2f}", "width": f"{width:.2f}"}
            SubElement(group, "rect", {**place, "height": f"{height:.2f}", "class": name})
