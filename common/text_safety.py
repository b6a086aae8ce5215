"""Untrusted text made safe for a terminal and for a log line."""

from __future__ import annotations

import logging
from types import TracebackType

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_CONTROLS: dict[int, str | None] = {
    **{code: "�" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"},
    ord("\r"): None,
}


def one_line(text: str) -> str:
    """Replace every character that could control a terminal or start a new line with U+FFFD."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "�" for c in text)


def printable(text: str) -> str:
    """Replace the control characters of a text that could steer a terminal; newlines and tabs stay."""
    return text.translate(_CONTROLS)


class LogFormatter(logging.Formatter):
    """Formats a record as one line, whatever it quotes; a traceback keeps its own lines."""

    def __init__(self, process: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s {process} %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = one_line(record.message)
        return super().formatMessage(record)

    def formatException(self, ei: ExceptionInfo) -> str:
        return "\n".join(one_line(line) for line in super().formatException(ei).split("\n"))
