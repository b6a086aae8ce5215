"""What a log may say of a failure: its type and its place, never its words, which may quote a prompt or a key."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MOST_PLACES = 12  # of each failure, the innermost ones


def described(error: BaseException) -> str:
    """A failure and what it came from, as types and places. Pure."""
    return "; after ".join(_described(each) for each in _chain(error))


def _described(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__, limit=-MOST_PLACES)
    places = " > ".join(f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in frames)
    inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
    parts = "".join(f" [{described(each)}]" for each in inner)
    return f"{type(error).__name__} at {places or 'no place'}{parts}"


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        yield current
        current = current.__cause__ or (None if current.__suppress_context__ else current.__context__)


class RedactionFilter(logging.Filter):
    """Writes every traceback of a log record without the words of its exceptions."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Always lets the record through."""
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if error is not None:
            record.exc_text = described(error)
        return True


def keep_words_out_of_logs(loop: asyncio.AbstractEventLoop) -> None:
    """From now on no log of this process and this loop tells what an exception said."""
    for handler in logging.getLogger().handlers:
        handler.addFilter(RedactionFilter())
    loop.set_exception_handler(_unhandled)


def _unhandled(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """As asyncio would, but without its representations of tasks, which contain those of their exceptions."""
    error = context.get("exception")
    logger.error("%s: %s", context.get("message", "unhandled"), described(error) if error else "no exception")
