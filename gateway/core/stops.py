"""Cuts a text that comes in pieces at the first of some stop strings, and shows no part of one. Pure."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Of the stop strings in a text, the one that ends first counts; of several that end there, the longest.

    So the result does not depend on how the text was cut into pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self.stopped = False
        self._stops = tuple(stops)
        self._held = ""

    def push(self, piece: str) -> str:
        """The text that may be shown now; nothing more after a stop string came."""
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
        """What was held back and turned out to be no stop string, at the end of the text."""
        held, self._held = self._held, ""
        return held

    def _first_stop(self, text: str) -> int | None:
        found = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        return min(found)[1] if found else None

    def _held_back(self, text: str) -> int:
        """The length of the longest end of the text that may be the beginning of a stop string."""
        longest = min(max(map(len, self._stops)) - 1, len(text))
        ends = (size for size in range(longest, 0, -1) if any(stop.startswith(text[-size:]) for stop in self._stops))
        return next(ends, 0)
