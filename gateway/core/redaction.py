"""Log lines about failures: their types and places, never their messages, which may quote a prompt or a key."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MAX_PLACES = 12  # of each failure, the innermost ones


def describe(error: BaseException) -> str:
    """Return a failure and its causes as types and places."""
    return "; after ".join(_describe_one(each) for each in _chain(error))


def _describe_one(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__, limit=-MAX_PLACES)
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    parts = "".join(f" [{describe(each)}]" for each in inner)
    return f"{type(error).__name__} at {places or 'no place'}{parts}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


class RedactionFilter(logging.Filter):
    """Writes the traceback of a log record without the messages of its exceptions."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Redact the record; it is always logged."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None:
            record.exc_text = describe(error)
        return True


def redact_logs(loop: asyncio.AbstractEventLoop) -> None:
    """Keep the messages of exceptions out of all logs of this process and this loop from now on."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactionFilter())
    loop.set_exception_handler(_unhandled)


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log as asyncio would, but without the representations of tasks, which contain those of their exceptions."""
    error = context.get("exception")
    logger.error("%s: %s", context.get("message", "unhandled"), describe(error) if error else "no exception")
