"""Log lines that others can cause, kept to a few: one a key and interval, and how many more there were. No sockets."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

MOST_KEYS = 256


class RateLimit:
    """Pure: the clock is handed in, in seconds. Beyond `most` keys at a time, all further ones count as one."""

    def __init__(self, every_s: float, most: int = MOST_KEYS) -> None:
        self._every_s, self._most = every_s, most
        self._said: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when, and how many were kept back since

    def pass_on(self, key: str, now: float) -> int | None:
        """How many of this key were kept back since the last that passed; None where this one is kept back too."""
        known = key if key in self._said or self._has_room(now) else ""
        at, kept_back = self._said.get(known, (now - self._every_s, 0))
        if now - at < self._every_s:
            self._said[known] = (at, kept_back + 1)
            return None
        self._said[known] = (now, 0)
        self._said.move_to_end(known)
        return kept_back

    def _has_room(self, now: float) -> bool:
        """The key that passed longest ago makes room, if it might pass again by now."""
        if len(self._said) >= self._most and now - next(iter(self._said.values()))[0] >= self._every_s:
            self._said.popitem(last=False)
        return len(self._said) < self._most


class RateLimitedLogger:
    """A logger for what outsiders can cause: at most one line of a key in `every_s` seconds."""

    def __init__(
        self, logger: logging.Logger, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger, self._clock = logger, clock
        self._limit = RateLimit(every_s)

    def warning(self, key: str, text: str, *arguments: object) -> None:
        """Log, or only count. Keys are few: reasons, kinds, addresses of linked nodes."""
        self._log(logging.WARNING, key, text, arguments, trace=False)

    def exception(self, key: str, text: str, *arguments: object) -> None:
        """The same as an error, with the traceback of the exception that is being handled."""
        self._log(logging.ERROR, key, text, arguments, trace=True)

    def _log(self, level: int, key: str, text: str, arguments: tuple[object, ...], *, trace: bool) -> None:
        kept_back = self._limit.pass_on(key, self._clock())
        if kept_back is not None:
            more = f" (and {kept_back} more)" if kept_back else ""
            self._logger.log(level, text + more, *arguments, exc_info=trace)
