"""Bounds what clients that type names can make a node ask of the hub. Sends nothing itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cachetools import TTLCache

from common.rate_limit import TokenBuckets
from models.errors import DownloadError, NotOnHub, TokenizerError, WeightsError

REFUSED_S = 60.0
MAX_REFUSED = 1024
LOOKUPS_PER_S = 8.0
MAX_LOOKUPS = 8  # at a time


class TooManyLookups(DownloadError):
    """A name that is not looked up because of many others."""


class Lookups:
    """The lookups that run, how many may begin, and the names that were refused in the last minute."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._buckets = TokenBuckets(LOOKUPS_PER_S, 1)
        self._refused: TTLCache[str, NotOnHub | TokenizerError | WeightsError] = TTLCache(MAX_REFUSED, REFUSED_S, clock)
        self._running = 0

    @contextmanager
    def lookup(self, name: str) -> Iterator[None]:
        """Hold a place for the lookup of a name during the block, and remember if the block refuses the name.

        Raises what an earlier block refused it with, and TooManyLookups.
        """
        if refused := self._refused.get(name):
            raise type(refused)(str(refused))
        if self._running >= MAX_LOOKUPS or not self._buckets.allow("", self._clock()):
            raise TooManyLookups(f"many names are being looked up on the hub; ask for {name} again in a few seconds")
        self._running += 1
        try:
            yield
        except (NotOnHub, TokenizerError, WeightsError) as error:  # the same name will not do in a minute either
            self._refused[name] = error
            raise
        finally:
            self._running -= 1
