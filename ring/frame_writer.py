"""The frames that a stage sends, made from its values. What is sent when is the stage's business."""

from __future__ import annotations

import msgspec
import numpy as np

from bus.dataplane.access import reply_endpoint
from bus.dataplane.frames import Flag, Frame
from bus.dataplane.transport import Array, NeighbourGone, Transport
from cluster.openings import LONGEST_FAILURE, Failure, Opening
from engines.activations import packed
from engines.engine import FloatArray
from models.config import Dtype
from ring.sessions import StageSession
from ring.types import RingView, Sampled, Step

Outgoing = tuple[str, Frame, Array | bytes]
"""An end point, and what goes there."""


class FrameWriter:
    """Frames with the ring's epoch and the stage's place in them. Endings are sent here, as nobody waits for them."""

    def __init__(self, ring: Transport, epoch: int, place: RingView, activations: Dtype) -> None:
        self.place = place
        self._ring = ring
        self._epoch = epoch
        self._activations = activations

    def frame(self, session: int, flags: int, position: int = 0, spent_ns: int = 0, rest: int = 0) -> Frame:
        """A header from this stage."""
        return Frame(flags, self._epoch, session, position, stage=self.place.index, compute_ns=spent_ns, rest=rest)

    def onward(self, session: StageSession, flags: int, payload: bytes) -> Outgoing:
        """What every stage shall hear, for the next one."""
        return self.place.following, self.frame(session.session, flags), payload

    def hidden(self, step: Step, output: FloatArray, rest: int) -> Outgoing:
        """A step's hidden states for the next stage, in the model's own dtype."""
        flags = (Flag.LAST if step.last else 0) | (Flag.ROLLBACK if step.rollback else 0)
        frame = self.frame(step.session.session, flags, step.position, step.spent_ns, rest)
        return self.place.following, frame, packed(output, self._activations)

    def ring_token(self, choice: Sampled, rest: int) -> tuple[Frame, Array]:
        """The newest token of a session and the drafts after it, for the first stage."""
        flags = Flag.TOKEN | (Flag.ROLLBACK if choice.rollback else 0) | (Flag.FINISHED if choice.finished else 0)
        position = choice.position + len(choice.tokens) - 1
        frame = self.frame(choice.session.session, flags, position, 0, rest)
        return frame, np.array((choice.tokens[-1], *choice.drafts), np.int32)

    def tokens(self, choice: Sampled) -> Outgoing:
        """All new tokens of a session, for its gateway."""
        flags = Flag.TOKEN | Flag.FINISHED if choice.finished else Flag.TOKEN
        frame = self.frame(choice.session.session, flags, choice.position, choice.spent_ns)
        return choice.session.reply_to, frame, np.array(choice.tokens, np.int32)

    def through(self, step: Step) -> Outgoing:
        """To the first stage: this chunk of a prompt has passed the whole ring."""
        return self.place.first, self.frame(step.session.session, Flag.THROUGH, step.end), np.empty(0, np.int32)

    def admitted(self, session: StageSession, known: int) -> None:
        """To the gateway: the session runs, and `known` tokens of its prompt need not be computed."""
        self._place(session.session, session.reply_to, 0, known)

    def place_in_queue(self, session: int, opening: Opening, ahead: int) -> bool:
        """To the gateway: the session waits, as number `ahead` of those that do, from 0. False where it is gone."""
        reply_to = self._way_back(opening)
        return bool(reply_to) and self._place(session, reply_to, ahead + 1, 0)

    def refused(self, session: int, opening: Opening, failure: Failure) -> None:
        """To the gateway: the session was not let in."""
        if reply_to := self._way_back(opening):
            self.failed(session, reply_to, failure)

    def failed(self, session: int, reply_to: str, failure: Failure) -> None:
        """To the gateway: the session is over."""
        said = msgspec.structs.replace(failure, message=failure.message[:LONGEST_FAILURE])
        self._say(reply_to, self.frame(session, Flag.FAILED), msgspec.msgpack.encode(said), "gateway gone")

    def closed(self, session: StageSession, endpoint: str) -> None:
        """To a stage: the session is over."""
        self._say(endpoint, self.frame(session.session, Flag.CLOSE), b"", "neighbour gone")

    def _way_back(self, opening: Opening) -> str:
        """The owner's end point; empty where it is gone."""
        try:
            return reply_endpoint(opening.reply_to, self._ring.own_id)
        except ValueError:
            self._ring.dropped["gateway gone"] += 1
            return ""

    def _place(self, session: int, reply_to: str, ahead: int, cached: int) -> bool:
        payload = np.array([ahead, cached], np.int32)
        return self._say(reply_to, self.frame(session, Flag.PLACE), payload, "gateway gone")

    def _say(self, endpoint: str, frame: Frame, payload: Array | bytes, loss: str) -> bool:
        try:
            self._ring.send(endpoint, frame, payload)
        except NeighbourGone:
            self._ring.dropped[loss] += 1
            return False
        return True
