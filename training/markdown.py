"""Free text and values as Markdown in which they can't act as markup."""

import html
import re
from collections.abc import Sequence

from markupsafe import Markup


def escape_markdown(text: str) -> str:
    r"""Text on one line that shows as it is, in a paragraph, a list or a table cell.

    Example:
        >>> escape_markdown("<script> | *a*")
        '&lt;script&gt; \\| \\*a\\*'
    """
    line = html.escape(" ".join(text.split()), quote=False)
    escaped = re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", line)
    return re.sub(r"^(\d*)([-+.)])(?=\s|$)", r"\1\\\2", escaped)  # no list within a list


def code_span(text: str) -> Markup:
    """Text as inline code, whatever backticks it holds."""
    line = " ".join(text.split())
    fence = "`" * (_longest_run_of_backticks(line) + 1)
    return Markup(f"{fence}{line}{fence}" if fence == "`" else f"{fence} {line} {fence}")


def code_block(text: str, language: str) -> Markup:
    """Text as a fenced block, whatever fences it holds."""
    fence = "`" * max(3, _longest_run_of_backticks(text) + 1)
    return Markup(f"{fence}{language}\n{text.rstrip()}\n{fence}")


def duration(seconds: float) -> str:
    """Seconds in the two largest units that they fill.

    Example:
        >>> duration(7.4), duration(692), duration(7384)
        ('7 s', '11 min 32 s', '2 h 3 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table of columns of one width, numbers to the right.

    Example:
        >>> print(markdown_table(["", "RR@1"], [["mfh", "24.3"]]))
        |     | RR@1 |
        | --- | ---: |
        | mfh | 24.3 |
    """
    widths = [max(map(len, column)) for column in zip(heading, *rows, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        for row in (heading, rule, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _longest_run_of_backticks(text: str) -> int:
    return max(map(len, re.findall("`+", text)), default=0)
