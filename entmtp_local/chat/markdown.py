"""One block of Markdown as rows of a terminal, drawn by rich."""

from __future__ import annotations

import re
from io import StringIO
from typing import ClassVar

from markdown_it import MarkdownIt
from rich.color import ColorSystem
from rich.console import Console, ConsoleOptions, RenderResult
from rich.markdown import CodeBlock, Heading, Markdown, MarkdownElement
from rich.segment import Segment
from rich.text import Text
from rich.theme import Theme

from entmtp_local.chat.blocks import Block
from entmtp_local.chat.code import code_rows
from entmtp_local.chat.wrapping import wrap

# What a model writes between < and > is text: List<String> is no HTML.
_PARSER = MarkdownIt().enable("strikethrough").enable("table").disable(["html_inline", "html_block"])
# rich's own has black behind code, which is a bar on a light terminal
_THEME = Theme({"markdown.code": "cyan"})
_COLOR_SYSTEMS = {"256": ColorSystem.EIGHT_BIT, "truecolor": ColorSystem.TRUECOLOR}
_END = re.compile(r"(?:\x1b\[[\d;]*m| )+$")


class _Code(CodeBlock):
    """Of an item of a list. Without a frame and a background, so that what is copied is the code."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = code_rows(str(self.text).removesuffix("\n"), self.lexer_name, options.max_width, colored=not console.no_color)
        yield Text.from_ansi("\n".join(rows))


class _Heading(Heading):
    LEVEL_ALIGN: ClassVar = {}


class _Markdown(Markdown):
    elements: ClassVar[dict[str, type[MarkdownElement]]] = {
        **Markdown.elements,
        "fence": _Code,
        "code_block": _Code,
        "heading_open": _Heading,
    }

    def __init__(self, source: str) -> None:
        # as Markdown's own, which makes a new parser each time: a third of what a block costs
        self.markup, self.parsed = source, _PARSER.parse(source)
        self.code_theme = self.inline_code_theme = "default"
        self.justify, self.style, self.hyperlinks, self.inline_code_lexer = None, "none", False, None
        for token in self.parsed:
            for child in token.children or ():
                # lines that a model ends are meant to end
                if child.type == "softbreak":
                    child.type = "hardbreak"


class Painter:
    """Draws blocks for a terminal.

    Args:
        colored: colours are wanted; bold and the like always are.
    """

    def __init__(self, *, colored: bool) -> None:
        self._console = Console(
            file=StringIO(), force_terminal=True, no_color=not colored, highlight=False, legacy_windows=False, theme=_THEME
        )
        self._color_system = _COLOR_SYSTEMS.get(self._console.color_system or "", ColorSystem.STANDARD)

    def rows(self, block: Block, width: int) -> list[str]:
        """The rows of a block, an empty one first where there is a gap before it."""
        indent = min(block.indent, width // 2)
        # in a single column rich would look without end for a place to cut a character of two
        width = max(2, width - indent)
        if block.code is not None:
            rows = code_rows(*block.code, width, colored=not self._console.no_color)
        else:
            lines = self._console.render_lines(_Markdown(block.source), self._console.options.update(width=width), pad=False)
            rows = [self._row(line) for line in lines]
            while rows and not rows[-1]:
                rows.pop()
            while rows and not rows[0]:
                rows.pop(0)
        # rich draws nothing of some elements where there is no room for them
        rows = rows or wrap(block.source, width)
        return [*([""] if block.gap else []), *(" " * indent + row for row in rows)]

    def _row(self, line: list[Segment]) -> str:
        # Console.print would do the same, and look for more than is here
        segments = Segment.remove_color(line) if self._console.no_color else line
        return _stripped(
            "".join(
                style.render(text, color_system=self._color_system) if style else text
                for text, style, control in segments
                if not control
            )
        )


def _stripped(row: str) -> str:
    """Without the blanks at the end, which would wrap when the window is made smaller."""
    bare = _END.sub("", row)
    return bare + "\x1b[0m" if "\x1b" in bare else bare
