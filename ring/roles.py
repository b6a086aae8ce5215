"""What depends on a stage's place in its ring: where its sessions come from, and where its outputs go.

The first stage's input is a `RingCoordinator`, the others' a `Follower`; the last stage's output is a `TokenSampler`,
the others' a `Forwarder`. `ring.stage_thread.join_ring` chooses them; nothing else asks whether a stage is the first or
the last one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from bus.dataplane.frames import Frame, Payload
from cluster.openings import Opening
from ring.model_runner import Computed
from ring.prefix_cache import CacheReport, CacheUpdate
from ring.sessions import StageSession
from ring.steps import Step


class InputRole(ABC):
    """How a stage gets its sessions and their rows. The first stage's are its own, the others' come down the ring."""

    @property
    @abstractmethod
    def waiting(self) -> int:
        """How many sessions wait to be admitted."""

    @abstractmethod
    def waits(self, session_id: int) -> bool:
        """Return whether a session waits to be admitted. May be called from any thread."""

    @property
    @abstractmethod
    def idle_limit_s(self) -> float:
        """After how many seconds without a step a session is considered lost."""

    @abstractmethod
    def accepts(self, frame: Frame, sender: str) -> bool:
        """Return whether a frame may come from this node; see `ring.frame_policy`."""

    @abstractmethod
    def may_reply_to(self, owner: str, sender: str) -> bool:
        """Return whether an opening that comes from `sender` may name endpoints of the node `owner`."""

    @abstractmethod
    def open(self, session_id: int, opening: Opening, reply_to: str) -> None:
        """Handle an opening. Raises KeyError or ValueError if the session cannot be opened."""

    @abstractmethod
    def receive(self, session: StageSession, frame: Frame, payload: Payload) -> None:
        """Handle a frame of a session that is open here, none of OPEN, CLOSE and STORE."""

    @abstractmethod
    def receive_store(self, frame: Frame, payload: Payload) -> None:
        """Handle a STORE, whether or not its session is open here."""

    @abstractmethod
    def report(self, report: CacheReport) -> None:
        """Let the first stage know what this one may store, and whether blocks are missing."""

    @abstractmethod
    def trim(self, now: float) -> None:
        """Have every stage drop what there is no memory for. Called once a second."""

    @property
    @abstractmethod
    def busy(self) -> bool:
        """Whether there is something to compute now."""

    @abstractmethod
    def next_steps(self) -> list[Step]:
        """Return a micro-batch of decode steps; empty if none is due."""

    @abstractmethod
    def next_prompts(self) -> list[Step]:
        """Return a micro-batch of prompt chunks; empty if none is due."""

    @abstractmethod
    def failed(self, session: StageSession) -> None:
        """Handle that this stage failed a session, which is closed already."""

    @abstractmethod
    def admit(self) -> None:
        """Start the sessions that may run now. Called every turn."""

    @abstractmethod
    def started(self, session: StageSession, cached: int) -> None:
        """Handle that a session has its slot, with its first `cached` positions restored."""

    @abstractmethod
    def closing(self, session: StageSession, frame: Frame) -> None:
        """Handle the CLOSE of a session, which is still open."""

    @abstractmethod
    def closed(self, session_id: int) -> None:
        """Forget a session that is over, or that waited and is given up. It may be unknown."""

    @abstractmethod
    def drain(self) -> None:
        """Refuse new sessions from now on, and those that wait."""


class OutputRole(ABC):
    """Where a stage's outputs go: to the next stage, or from the last one as tokens to the gateway and the first."""

    drafted = 0
    accepted = 0

    @abstractmethod
    def logits_wanted(self, step: Step) -> int:
        """Return of how many of a step's last rows the logits are wanted. Raises EngineError for an invalid step."""

    @abstractmethod
    def started(self, session: StageSession, cached: int) -> None:
        """Handle that a session has its slot, with its first `cached` positions restored."""

    @abstractmethod
    def store(self, session_id: int, update: CacheUpdate) -> bool:
        """Pass a cache update on. Returns False if the next stage cannot be reached."""

    @abstractmethod
    def deliver(self, computed: list[Computed]) -> None:
        """Send on what the engine made of a micro-batch."""

    @abstractmethod
    def closed(self, session: StageSession) -> None:
        """Forget a session, and pass its CLOSE on."""
