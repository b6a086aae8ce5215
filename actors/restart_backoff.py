"""When a process that ended is started again, and when it is given up. The supervisor owns the clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

FIRST_PAUSE_S = 0.1
MAX_PAUSE_S = 10.0
HEALTHY_AFTER_S = 60.0
BURST = 5
BURST_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class RestartBackoff:
    """The recent deaths of one process, as monotonic times, and the pause before its next start, in seconds."""

    deaths: tuple[float, ...] = ()
    pause: float = FIRST_PAUSE_S

    def died(self, now: float, lived_s: float) -> RestartBackoff:
        """Add a death after a lifetime of `lived_s` seconds: pauses double, and start over after a long lifetime."""
        recent = tuple(death for death in self.deaths if now - death < BURST_WINDOW_S)
        pause = FIRST_PAUSE_S if lived_s >= HEALTHY_AFTER_S or not self.deaths else min(2 * self.pause, MAX_PAUSE_S)
        return replace(self, deaths=(*recent, now), pause=pause)

    @property
    def exhausted(self) -> bool:
        """Whether the process died too often in too short a time to be started again."""
        return len(self.deaths) >= BURST
