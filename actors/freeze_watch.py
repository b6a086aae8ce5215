"""Which processes of a node are frozen: what its supervisor sees once a second in, names out.

A process is frozen if nothing was heard of it for 5.5 s, and it did not compute in that time. One that computes without
letting its loop run, as a library may while it loads a model, has 60 s. Times are passed in; nothing is killed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

LOOK_EVERY_S = 1.0
REPLY_S = 0.5  # for the hub's reply: a look takes no longer
LATE_S = 1.5  # beyond it this process itself did not run: the machine slept, or the whole node was stopped
SILENT_S = 5.5  # a freeze of 4 s is survived: an actor that registers every second is then silent for up to 5
COMPUTING_S = 60.0


@dataclass(frozen=True, slots=True)
class Sight:
    """What is seen of a registered process.

    `silent_s` are the seconds since it was heard, `cpu_s` those that it computed in its life. `is_ready` says that it
    would go on if it had a processor or its disk.
    """

    pid: int
    silent_s: float
    cpu_s: float
    is_ready: bool = False


@dataclass(frozen=True, slots=True)
class _Clock:
    pid: int
    cpu_s: float
    heard_at: float
    active_at: float

    def limit_passed(self, now: float) -> float:
        """Return the limit in seconds that the process has passed, or 0."""
        if now - self.heard_at >= COMPUTING_S:
            return COMPUTING_S
        return SILENT_S if now - max(self.heard_at, self.active_at) >= SILENT_S else 0.0


class FreezeWatch:
    """The processes by name. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._clocks: dict[str, _Clock] = {}
        self._looked_at = 0.0

    def look(self, begun: float, now: float, sights: Mapping[str, Sight]) -> dict[str, float]:
        """Return the frozen processes, each with the seconds for which it did not respond.

        The look began at `begun`, and `now` it has seen all there is to see. A process that is not seen, or another one
        of the same name, has a new clock the next time; all have one if this look is late.
        """
        if begun - self._looked_at > LOOK_EVERY_S + LATE_S or now - begun > REPLY_S + LATE_S:
            self._clocks = {}
        self._looked_at = now
        self._clocks = {name: _clock(self._clocks.get(name), sight, now) for name, sight in sights.items()}
        limits = {name: clock.limit_passed(now) for name, clock in self._clocks.items()}
        return {name: limit for name, limit in limits.items() if limit}


def _clock(before: _Clock | None, sight: Sight, now: float) -> _Clock:
    if before is None or before.pid != sight.pid:
        return _Clock(sight.pid, sight.cpu_s, now, now)
    is_active = sight.is_ready or sight.cpu_s > before.cpu_s
    heard_at = max(before.heard_at, now - sight.silent_s)
    return _Clock(sight.pid, sight.cpu_s, heard_at, now if is_active else before.active_at)
