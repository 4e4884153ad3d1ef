"""Secrets taken out of whatever a run writes: tokens of the Hub, passwords in addresses, authorisation headers."""

import logging
import re
import sys
import traceback
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from huggingface_hub import get_token

STARS = "***"
PATTERNS = (
    re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}"),  # a token of the Hub, by its prefix
    re.compile(r"(?<=://)[^/\s@\"'<>]+(?=@)"),  # user and password of an address
    re.compile(r"(?i)(?<=[?&]token=)[^&\s\"'<>]+"),
    re.compile(r"(?i)(?<=\bbearer )[\w.~+/=-]+"),
)


def redact(text: str) -> str:
    """Text with stars in place of every secret.

    Example:
        >>> redact("GET https://me:secret@hub.example/x?token=abc failed")
        'GET https://***@hub.example/x?token=*** failed'
    """
    for pattern in PATTERNS:
        text = pattern.sub(STARS, text)
    own = get_token()
    return text.replace(own, STARS) if own else text


def redacted(value: Any) -> Any:
    """JSON-like data with every string in it redacted, keys included."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {redacted(key): redacted(part) for key, part in value.items()}
    return [redacted(part) for part in value] if isinstance(value, list | tuple) else value


class RedactingFormatter(logging.Formatter):
    """A formatter whose lines, tracebacks included, carry no secret."""

    def format(self, record: logging.LogRecord) -> str:
        """The line of a record."""
        return redact(super().format(record))


def redact_uncaught_errors() -> None:
    """Let an error that ends the process be printed without secrets."""
    sys.excepthook = _print_redacted


def _print_redacted(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))
