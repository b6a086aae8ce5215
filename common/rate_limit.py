"""Rate limits by key, in bounded memory. The caller passes the time in seconds; only `RateLimitedLogger` has a clock.

`TokenBuckets` limits how often each key may do something; `RateLimit` lets one event of a key pass in each interval and
counts the others, which `RateLimitedLogger` uses for log lines that another machine can cause.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable

MAX_KEYS = 256


class TokenBuckets:
    """A token bucket for each key: at most `rate` events a second and the same number at once.

    At most `most` keys are tracked; a new key beyond them is refused until another has been idle for a second.
    """

    def __init__(self, rate: float, most: int) -> None:
        self._rate = rate
        self._most = most
        self._buckets: dict[str, tuple[float, float]] = {}  # tokens left, and at which time

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, key: str, now: float) -> bool:
        """Take a token of this key. Returns False if it has none left, or if it is new and there is no room."""
        if key not in self._buckets and not self._has_room(now):
            return False
        tokens, since = self._buckets.get(key, (self._rate, now))
        tokens = min(self._rate, tokens + (now - since) * self._rate)
        self._buckets[key] = (tokens - 1 if tokens >= 1 else tokens, now)
        return tokens >= 1

    def _has_room(self, now: float) -> bool:
        if len(self._buckets) >= self._most:
            # A bucket that was not used for a second is full again, which is the same as a new one.
            self._buckets = {key: bucket for key, bucket in self._buckets.items() if now - bucket[1] < 1}
        return len(self._buckets) < self._most


class RateLimit:
    """Lets one event of a key pass in `every_s` seconds. Beyond `most` keys at a time, all further ones share one."""

    def __init__(self, every_s: float, most: int = MAX_KEYS) -> None:
        self._every_s, self._most = every_s, most
        self._passed: OrderedDict[str, tuple[float, int]] = OrderedDict()  # when, and how many were suppressed since

    def pass_on(self, key: str, now: float) -> int | None:
        """Return how many events of this key were suppressed since one passed, or None if this one is suppressed."""
        known = key if key in self._passed or self._has_room(now) else ""
        at, suppressed = self._passed.get(known, (now - self._every_s, 0))
        if now - at < self._every_s:
            self._passed[known] = (at, suppressed + 1)
            return None
        self._passed[known] = (now, 0)
        self._passed.move_to_end(known)
        return suppressed

    def _has_room(self, now: float) -> bool:
        # Only a key that may pass again is dropped: dropping any other would let it pass too early.
        if len(self._passed) >= self._most and now - next(iter(self._passed.values()))[0] >= self._every_s:
            self._passed.popitem(last=False)
        return len(self._passed) < self._most


class RateLimitedLogger:
    """A logger for what other machines can cause: at most one line of a key in `every_s` seconds."""

    def __init__(
        self, logger: logging.Logger, every_s: float = 60.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._logger, self._clock = logger, clock
        self._limit = RateLimit(every_s)

    def warning(self, key: str, text: str, *arguments: object) -> None:
        """Log a warning, or only count it. Use few keys: reasons, kinds, addresses of linked nodes."""
        self._log(logging.WARNING, key, text, arguments, trace=False)

    def exception(self, key: str, text: str, *arguments: object) -> None:
        """Log an error with the traceback of the exception that is being handled, or only count it."""
        self._log(logging.ERROR, key, text, arguments, trace=True)

    def _log(self, level: int, key: str, text: str, arguments: tuple[object, ...], *, trace: bool) -> None:
        suppressed = self._limit.pass_on(key, self._clock())
        if suppressed is not None:
            more = f" (and {suppressed} more)" if suppressed else ""
            self._logger.log(level, text + more, *arguments, exc_info=trace)
