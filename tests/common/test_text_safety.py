"""`common.text_safety`: untrusted text on a terminal and in a log."""

from __future__ import annotations

import io
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.text_safety import LogFormatter, one_line, printable

HOSTILE = "fine\x1b[2J\r\n2026-11-22 INFO hub: a line of its own\x07 ünd"


@given(st.text())
def test_only_unprintable_characters_are_replaced(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert all(now in (then, "�") for then, now in zip(text, shown, strict=True))


@pytest.mark.parametrize("raised", [False, True])
def test_log_record_is_one_line_except_its_traceback(raised: bool) -> None:
    out = io.StringIO()
    handler = logging.StreamHandler(out)
    handler.setFormatter(LogFormatter("hub"))
    record = logging.LogRecord("bus", logging.WARNING, "x.py", 1, "received %s", (HOSTILE,), None)
    if raised:
        try:
            raise ValueError(HOSTILE)
        except ValueError as error:
            record.exc_info = (ValueError, error, error.__traceback__)
    handler.emit(record)
    lines = out.getvalue().rstrip("\n").split("\n")
    assert "�[2J" in lines[0]
    assert all(line.isprintable() for line in lines)
    assert (len(lines) > 1) is raised


def test_printable_keeps_newlines_and_tabs_only() -> None:
    controls = "".join(chr(code) for code in (*range(0x20), *range(0x7F, 0xA0)))
    assert set(printable(controls)) == set("\n\t�")
    assert printable("a\r\nb\u00e9\u4e2d") == "a\nb\u00e9\u4e2d"
