"""When a dead process is started again, and when not. Pure; the supervisor owns the clock and the processes."""

from __future__ import annotations

from dataclasses import dataclass, replace

FIRST_PAUSE_S = 0.1
LONGEST_PAUSE_S = 10.0
HEALTHY_AFTER_S = 60.0
BURST = 5
BURST_WINDOW_S = 60.0


@dataclass(frozen=True, slots=True)
class RestartBackoff:
    """The deaths of one process. `pause` is how long to wait before the next start, in seconds."""

    deaths: tuple[float, ...] = ()
    pause: float = FIRST_PAUSE_S

    def died(self, now: float, lived_s: float) -> RestartBackoff:
        """One more death, after a life of `lived_s`: pauses double, and start over after a healthy life."""
        recent = tuple(death for death in self.deaths if now - death < BURST_WINDOW_S)
        pause = FIRST_PAUSE_S if lived_s >= HEALTHY_AFTER_S or not self.deaths else min(2 * self.pause, LONGEST_PAUSE_S)
        return replace(self, deaths=(*recent, now), pause=pause)

    @property
    def exhausted(self) -> bool:
        """Whether it died too often in too short a time to be started again."""
        return len(self.deaths) >= BURST
