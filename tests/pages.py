"""Checks of pages with figures."""

from __future__ import annotations

import re
from html import unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

VOID = {"meta"}
# what axes count or measure
UNITS = {"nodes", "levels", "tokens", "ms", "nats", "chance", "share", "depth", "ratio", "arm"}


def check_figures(page: str, n: int) -> None:
    """Every figure has a title, which readers of screens are told too, and two named axes with values on them."""
    shown = re.findall("<figure>(.*?)</figure>", page, re.DOTALL)
    assert len(shown) >= n
    for figure in shown:
        title = re.search("<h4>(.+?)</h4>", figure)
        plot = re.search('<svg viewBox="[^"]*" role="img".*</svg>', figure, re.DOTALL)
        assert title is not None and plot is not None
        svg = ElementTree.fromstring(plot.group())
        assert svg.attrib["aria-label"] == unescape(title.group(1))
        names = [each.text or "" for each in svg.findall("text") if each.get("class") == "axis"]
        assert len(names) == 2 and all(UNITS & set(re.findall(r"\w+", name)) for name in names), names
        assert len(svg.findall("text")) >= 2 + 2, "values"


class Page(HTMLParser):
    """Every tag that is opened is closed, in order, every id is unique and every SVG is XML."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.feed(page)
        self.close()
        assert self.open == [] and len(set(self.ids)) == len(self.ids)
        for svg in re.findall("<svg.*?</svg>", page, re.DOTALL):
            ElementTree.fromstring(svg)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
