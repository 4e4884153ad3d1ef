import logging
import sys

import pytest

from training import redaction
from training.redaction import RedactingFormatter, redact, redacted

TOKEN = "hf_" + "aB3dE6gH9" * 4


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (f"a {TOKEN}, twice {TOKEN}.", "a ***, twice ***."),
        ("https://me:pass@hub.example/x@v1", "https://***@hub.example/x@v1"),
        (f"https://{TOKEN}@hub.example", "https://***@hub.example"),
        ("GET /x?token=abc&page=2", "GET /x?token=***&page=2"),
        ("'Authorization': 'Bearer abc.def'", "'Authorization': 'Bearer ***'"),
        ("the one in use: dummy-secret", "the one in use: ***"),
    ],
)
def test_secrets_become_stars(text, shown, monkeypatch):
    monkeypatch.setattr(redaction, "get_token", lambda: "dummy-secret")
    assert redact(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "hf_hub_download(repo_id)",
        "me@example.org",
        "org/model@v1",
        "tokenizer.json",
        "https://hub.example/a",
        "no token",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_json_is_redacted_at_every_depth_and_keeps_its_form():
    value = {"a": [TOKEN, 1, None, {TOKEN: f"x{TOKEN[:0]}"}], "b": 0.5, "c": ("d", True)}
    assert redacted(value) == {"a": ["***", 1, None, {"***": "x"}], "b": 0.5, "c": ["d", True]}


def test_log_lines_and_their_tracebacks_carry_no_secret():
    try:
        raise ValueError(f"refused {TOKEN}")
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "with %s", (TOKEN,), sys.exc_info())
    line = RedactingFormatter("%(message)s").format(record)
    assert "refused ***" in line
    assert "with ***" in line
    assert TOKEN not in line


def test_an_error_that_ends_the_process_is_printed_without_its_secret(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    redaction.redact_uncaught_errors()
    error = ValueError(f"no access by {TOKEN}")
    sys.excepthook(ValueError, error, None)
    assert capsys.readouterr().err == "ValueError: no access by ***\n"
