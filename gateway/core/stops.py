"""Cuts a text that comes in pieces at the first of some stop strings, and never shows a part of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Cuts at the stop string that ends first; of several that end at the same place, at the longest.

    The result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> str:
        """Return the text that can be shown now; empty once a stop string was found."""
        if self.stopped or not self._stops:
            return "" if self.stopped else piece
        text = self._held + piece
        cut = self._first_stop(text)
        if cut is not None:
            self.stopped, self._held = True, ""
            return text[:cut]
        held = self._held_back(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def flush(self) -> str:
        """Return what was held back and, as the text ends here, is no stop string."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _held_back(self, text: str) -> int:
        """Return the length of the longest end of the text that may begin a stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(text))
        ends = (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops))
        return next(ends, 0)
