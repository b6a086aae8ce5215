"""The roles of a stage that relays: its input unless it is the first stage, and its output unless it is the last."""

from __future__ import annotations

import msgspec

from bus.dataplane.frames import Frame, Payload
from cluster.openings import Opening
from common.limits import UNREADABLE
from engines.engine import FloatArray
from ring.frame_policy import accepted_by_later
from ring.model_runner import Computed
from ring.prefix_cache import CacheReport, CacheUpdate
from ring.roles import InputRole, OutputRole
from ring.sessions import StageSession
from ring.stage import Stage
from ring.step_queue import BadChunk
from ring.steps import Step

FOLLOWER_IDLE_S = 600.0

_decode_update = msgspec.msgpack.Decoder(CacheUpdate).decode


class Follower(InputRole):
    """The input of a stage that is not the first: openings, hidden states and cache updates from the stage before."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._previous = stage.ring.nodes[stage.ring.index - 1]
        self._queue = stage.queue
        self._most_pending = stage.ring.size + 1  # the first stage never sends on more chunks of a prompt

    def accepts(self, frame: Frame, sender: str) -> bool:
        """Return whether a frame comes from the stage before."""
        return accepted_by_later(frame, sender, self._previous)

    def may_reply_to(self, owner: str, sender: str) -> bool:
        """Return whether the opening names its owner, which the first stage has checked.

        Another node cannot open for "".
        """
        return not sender or bool(owner)

    def open(self, session_id: int, opening: Opening, reply_to: str) -> None:
        """Start a session; the first stage has admitted it."""
        self._stage.start(session_id, opening, reply_to)

    def receive(self, session: StageSession, frame: Frame, payload: Payload) -> None:
        """Queue hidden states. Raises BadChunk if they cannot be the session's next ones."""
        if session.pending > self._most_pending:
            raise BadChunk("more chunks came than were due; try again")
        self._queue.add_hidden(session, frame, payload)

    def receive_store(self, frame: Frame, payload: Payload) -> None:
        """Drop and store prefix blocks, and report to the first stage if that is not possible."""
        try:
            update = _decode_update(payload.tobytes())
        except UNREADABLE:
            self._stage.transport.dropped["store"] += 1
            update = None
        if not (update and self._stage.store(frame.session, update)):
            self._stage.report_cache(lacks=True)

    def report(self, report: CacheReport) -> None:
        """Send the report to the first stage."""
        self._stage.frames.send_report(report)

    def trim(self, now: float) -> None:
        """Do nothing: the first stage decides."""

    @property
    def busy(self) -> bool:
        """Whether a whole micro-batch waits."""
        return bool(self._queue)

    def next_steps(self) -> list[Step]:
        """Return the decode steps that came together; empty if none wait."""
        return self._queue.pop_decode()

    def next_prompts(self) -> list[Step]:
        """Return the prompt chunks that came together; empty if none wait."""
        return self._queue.pop_prompts()

    @property
    def waiting(self) -> int:
        """Always 0: sessions wait on the first stage."""
        return 0

    def waits(self, session_id: int) -> bool:
        """Return False: sessions wait on the first stage."""
        return False

    def admit(self) -> None:
        """Do nothing: the first stage admits."""

    def started(self, session: StageSession, cached: int) -> None:
        """Do nothing: hidden states will come."""

    def closing(self, session: StageSession, frame: Frame) -> None:
        """Do nothing: the first stage stores the text."""

    def closed(self, session_id: int) -> None:
        """Do nothing: nothing is kept here of a session."""

    def drain(self) -> None:
        """Do nothing: the first stage refuses new sessions."""

    def failed(self, session: StageSession) -> None:
        """Send CLOSE to the first stage.

        The stages between may not know the session, so the CLOSE that travels round the ring would end there.
        """
        self._stage.frames.send_close(session, self._stage.ring.first_endpoint)

    @property
    def idle_limit_s(self) -> float:
        """Long: how long a prompt waits on the first stage is not known here."""
        return FOLLOWER_IDLE_S


class Forwarder(OutputRole):
    """The output of a stage that is not the last: hidden states, openings and cache updates for the next one."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage

    def logits_wanted(self, step: Step) -> int:
        """Return 0: the engine of such a stage has no logits."""
        return 0

    def started(self, session: StageSession, cached: int) -> None:
        """Send the opening on."""
        self._stage.send(session, self._stage.frames.opening(session))

    def store(self, session_id: int, update: CacheUpdate) -> bool:
        """Send the update on; frames keep their order, so it arrives after the positions that it stores."""
        return self._stage.frames.send_update(session_id, update)

    def deliver(self, computed: list[Computed]) -> None:
        """Send the hidden states on, each frame with how many more of the micro-batch follow."""
        rest = len(computed)
        for step, output in computed:
            rest -= 1
            self._stage.attempt([step.session], self._send_on, step, output, rest)

    def _send_on(self, step: Step, output: FloatArray, rest: int) -> None:
        self._stage.send(step.session, self._stage.frames.hidden_states(step, output, rest))

    def closed(self, session: StageSession) -> None:
        """Pass the CLOSE on to the next stage."""
        self._stage.frames.send_close(session, self._stage.ring.next_endpoint)
