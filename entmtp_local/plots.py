"""Pages of small figures as text: an SVG with axes and marks, and the HTML around it. Knows nothing of what is shown.

Colours are classes, which the page gives a value in light and in dark mode: s0, s1 ... for series, q0, q1 ... for quantities. The
lettering of an SVG shrinks with it, so figures are drawn about as wide as a phone is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Pairs = Sequence[tuple[float, float]]
WIDTH, HEIGHT = 380, 250
WIDE = 1000  # of figures that are scrolled sideways on small screens
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 24, 38

_STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1c2330;--soft:#5a6372;--grid:#dfe3e9;--faint:#c3cad3;
--s0:#2468b2;--s1:#d0641b;--s2:#2a8f6d;--s3:#a04c9c;--s4:#b08a00;--s5:#7b8494;
--q0:#8f99a6;--q1:#d9a21b;--q2:#dd6b3f;--q3:#b5367a;--q4:#55309c}
@media (prefers-color-scheme:dark){:root{--page:#14181f;--ink:#e6e9ee;--soft:#a3acb9;--grid:#2e3541;--faint:#464f5e;
--s0:#6aaef5;--s1:#f09a55;--s2:#57c9a3;--s3:#d68bd2;--s4:#dcbf4d;--s5:#8a94a5;
--q0:#808a98;--q1:#efc352;--q2:#f08c66;--q3:#e3639f;--q4:#ab85f0}}
.s0{--c:var(--s0)}.s1{--c:var(--s1)}.s2{--c:var(--s2)}.s3{--c:var(--s3)}.s4{--c:var(--s4)}.s5{--c:var(--s5)}
.q0{--c:var(--q0)}.q1{--c:var(--q1)}.q2{--c:var(--q2)}.q3{--c:var(--q3)}.q4{--c:var(--q4)}
.ink{--c:var(--ink)}.faint{--c:var(--faint)}
body{margin:0 auto;padding:1rem;max-width:1160px;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",sans-serif}
h1{margin:.2rem 0;font-size:1.6rem}h2{margin:2.4rem 0 .6rem;font-size:1.25rem}h3{margin:1.4rem 0 .4rem;font-size:1rem}
p{max-width:48rem;margin:.8rem 0}
nav a{display:inline-block;margin-right:1rem;color:var(--s0)}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;margin:.4rem 0 1rem}
dt{color:var(--soft)}dd{margin:0;overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr));gap:1.4rem 1.6rem}
table{border-collapse:collapse;font-size:.9rem;font-variant-numeric:tabular-nums}
th,td{padding:.2rem .7rem;text-align:right;border-bottom:1px solid var(--grid);white-space:nowrap}
thead th{color:var(--soft);font-weight:600}th:first-child{text-align:left;padding-left:0;font-weight:500}
pre{font-size:.75rem;overflow-x:auto}
small{color:var(--soft)}summary{cursor:pointer;color:var(--soft);margin:.4rem 0}
figure{margin:0;min-width:0}
figure h4{margin:0 0 .2rem;font-size:.9rem}
figure svg{display:block;width:100%;height:auto}
figcaption,.legend{font-size:.8rem;color:var(--soft)}
.legend span{display:inline-block;margin-right:.9rem;white-space:nowrap}
figure .legend svg{display:inline-block;width:22px;height:10px;margin-right:.3rem}
.wide{overflow-x:auto}
.wide svg{min-width:860px}
svg text{fill:var(--soft);font-size:11.5px;font-family:inherit}
.grid{stroke:var(--grid)}
.line{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}
.thin{fill:none;stroke:var(--c);stroke-width:1}
.dashed{stroke-dasharray:5 4}
.mark,.bar{fill:var(--c)}
.hollow{fill:var(--page);stroke:var(--c);stroke-width:1.4}
.ring{fill:none;stroke:var(--c);stroke-width:1.6}
"""


def page(title: str, head: str, body: str) -> str:
    """A document that needs nothing else and no network.

    Args:
        head, body: HTML.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        # whatever a file's names hold, the page fetches nothing and runs nothing
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>EntMTP-local: {text(title.lower())}</title>\n<style>{_STYLE}</style></head>\n"
        f"<body><header><h1>{text(title)}</h1>{head}</header>\n<main>\n{body}</main></body></html>\n"
    )


def text(value: object) -> str:
    """Anything as the text of a page: escaped, and without the characters that XML does not allow."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value)))


def number(value: float, n_digits: int = 3) -> str:
    """A figure for people: three digits that mean something, and no powers of ten where they can be avoided."""
    if not math.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size < -4:
        return f"{value:.{n_digits - 1}e}"
    return f"{value:,.{max(0, n_digits - 1 - size)}f}"


def _round(value: float, n_decimals: int) -> str:
    """A round value in the room that an axis has."""
    return f"{value / 1000:,g}k" if abs(value) >= 10_000 else f"{value:,.{n_decimals}f}"


@dataclass(frozen=True, slots=True)
class Scale:
    """Values of an axis as places on the paper, on a straight or a logarithmic scale."""

    low: float
    high: float
    begin: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = self._of(self.low), self._of(self.high)
        share = (self._of(min(max(value, self.low), self.high)) - low) / (high - low) if high > low else 0.5
        return self.begin + share * (self.end - self.begin)

    def _of(self, value: float) -> float:
        return math.log10(value) if self.log else value

    def ticks(self) -> list[tuple[float, str]]:
        """About five round values, and what to write there."""
        if self.log:
            decades = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            # where there is room, between the powers of ten, too
            factors = (1, 2, 5) if math.log10(self.high / self.low) < 2.5 else (1,)
            found = [(factor * 10.0**k, k) for k in range(decades.start - 1, decades.stop) for factor in factors]
            return [(value, _round(value, max(0, -k))) for value, k in found if self.low <= value <= self.high]
        if not self.high > self.low:
            return [(self.low, number(self.low))]
        rough = (self.high - self.low) / 5
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough * 0.999)
        n_decimals = max(0, -math.floor(math.log10(step) + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [(i * step, _round(i * step, n_decimals)) for i in range(first, last + 1)]


def around(values: Iterable[float], zero: bool = False) -> tuple[float, float]:
    """The range of an axis that shows these values with some room, from 0 on where asked for."""
    known = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = (0.0 if zero else min(known)), max(known)
    room = 0.06 * (high - low) or 0.1 * abs(high) or 1.0
    return (low if zero else low - room), high + room


class Plot:
    """One figure. What is drawn last lies on top.

    Args:
        title: above the figure.
        x, y: lowest and highest value of each axis.
        x_ticks: values to name and what to write there; round values without them.
    """

    def __init__(
        self,
        title: str,
        x_label: str,
        y_label: str,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        x_ticks: Sequence[tuple[float, str]] | None = None,
        log_y: bool = False,
        width: int = WIDTH,
        height: int = HEIGHT,
    ) -> None:
        self.title = title
        self._width, self._height = width, height
        self.x = Scale(*x, _LEFT, width - _RIGHT)
        self.y = Scale(*y, height - _BOTTOM, _TOP, log_y)
        self._marks: list[str] = []
        self._legend: list[str] = []
        self._axes(x_label, y_label, self.x.ticks() if x_ticks is None else x_ticks)

    def _axes(self, x_label: str, y_label: str, x_ticks: Sequence[tuple[float, str]]) -> None:
        left, right, bottom = _LEFT, self._width - _RIGHT, self._height - _BOTTOM
        for value, label in self.y.ticks():
            y = self.y(value)
            self._marks.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self._marks.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{text(label)}</text>')
        for value, label in x_ticks:
            x = self.x(value)
            self._marks.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')
            self._marks.append(f'<text x="{x:.1f}" y="{bottom + 17}" text-anchor="middle">{text(label)}</text>')
        self._marks.append(f'<text class="axis" x="2" y="12">{text(y_label)}</text>')
        at = f'x="{right}" y="{self._height - 4}" text-anchor="end"'
        self._marks.append(f'<text class="axis" {at}>{text(x_label)}</text>')

    def name(self, label: str, colour: str, kind: str = "mark") -> None:
        """An entry of the legend: a dot, or a line where the kind is one of lines."""
        shape = (
            f'<path class="{kind} {colour}" d="M0 5H22"/>'
            if kind.split()[0] in ("line", "thin")
            else f'<circle class="{kind} {colour}" cx="11" cy="5" r="4"/>'
        )
        self._legend.append(f'<span><svg viewBox="0 0 22 10" aria-hidden="true">{shape}</svg>{text(label)}</span>')

    def line(self, points: Pairs, colour: str, kind: str = "line") -> None:
        """Straight lines from point to point; `kind` is "line" or "thin", perhaps with "dashed"."""
        path = "L".join(f"{self.x(x):.1f} {self.y(y):.1f}" for x, y in points)
        if path:
            self._marks.append(f'<path class="{kind} {colour}" d="M{path}"/>')

    def rule(self, y: float, colour: str, title: str) -> None:
        """A level line across the figure."""
        left, right, at = _LEFT, self._width - _RIGHT, self.y(y)
        self._marks.append(f'<path class="thin dashed {colour}" d="M{left} {at:.1f}H{right}"><title>{text(title)}</title></path>')

    def dot(self, x: float, y: float, colour: str, title: str, radius: float = 3.2, kind: str = "mark", extra: str = "") -> None:
        self._marks.append(
            f'<circle class="{kind} {colour}" cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{radius:.1f}"{extra}>'
            f"<title>{text(title)}</title></circle>"
        )

    def bar(self, x: tuple[float, float], y: tuple[float, float], colour: str, title: str) -> None:
        left, right, bottom, top = self.x(x[0]), self.x(x[1]), self.y(y[0]), self.y(y[1])
        self._marks.append(
            f'<rect class="bar {colour}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
            f'height="{max(0.0, bottom - top):.1f}"><title>{text(title)}</title></rect>'
        )

    def label(self, x: float, y: float, words: str, *, up: float = 7, anchor: str = "middle") -> None:
        self._marks.append(f'<text x="{self.x(x):.1f}" y="{self.y(y) - up:.1f}" text-anchor="{anchor}">{text(words)}</text>')

    def figure(self, caption: str = "", *, wide: bool = False) -> str:
        """The figure as HTML; a wide one is scrolled sideways on a small screen."""
        svg = (
            f'<svg viewBox="0 0 {self._width} {self._height}" role="img" aria-label="{text(self.title)}">'
            + "".join(self._marks)
            + "</svg>"
        )
        return (
            f"<figure><h4>{text(self.title)}</h4>"
            + (f'<div class="legend">{"".join(self._legend)}</div>' if self._legend else "")
            + (f'<div class="wide">{svg}</div>' if wide else svg)
            + (f"<figcaption>{text(caption)}</figcaption>" if caption else "")
            + "</figure>\n"
        )
