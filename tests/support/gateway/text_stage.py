"""A stage for tests that sends a prepared text to every session, over the real data plane."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from bus.dataplane.access import LOCAL, Access, best_endpoint
from bus.dataplane.frames import Flag, Frame, Payload
from bus.dataplane.transport import Transport
from bus.messages import SessionCheck, SessionState, SessionStates, Work
from cluster.openings import Opening, SessionFailure

EPOCH = 7
WITHIN_S = 15.0


@dataclass
class Script:
    """What the stage sends to every session, and how."""

    tokens: list[int] = field(default_factory=list)
    ahead: list[int] = field(default_factory=list)  # numbers of sessions in front in the queue, sent at the opening
    admitted: threading.Event = field(default_factory=threading.Event)  # clear: the session stays in the queue
    cached: int = -1  # sent at admission, unless negative
    silent: bool = False  # after `tokens`, nothing: neither end nor failure
    failure: SessionFailure | None = None  # after `tokens`
    at_once: int = 1  # tokens a frame
    pause_s: float = 0.0
    lost: int = -1  # the index of a token of which the frame is never sent
    twice: bool = False  # each frame is sent a second time
    malformed: list[tuple[int, Payload | bytes]] = field(default_factory=list)  # (flags, payload), at the opening

    def __post_init__(self) -> None:
        if not self.ahead:
            self.admitted.set()


class TextStage(threading.Thread):
    """A ring of one stage: replies to every opening with `script`."""

    def __init__(self, run_dir: Path, access: Access = LOCAL) -> None:
        super().__init__(name="stage", daemon=True)
        self._access = access
        self.script = Script()
        self.openings: dict[int, Opening] = {}
        self.closed: list[int] = []
        self.epochs: set[int] = set()
        self.sequences: list[int] = []
        self.endpoints: queue.Queue[tuple[str, ...]] = queue.Queue()
        self._run_dir = run_dir
        self._stopped = threading.Event()
        self._due: dict[int, tuple[float, int]] = {}  # session -> (when, index of the next token)

    def run(self) -> None:
        """Serve until `stop`."""
        transport = Transport(self._run_dir, "stage", self._access)
        self.endpoints.put(transport.endpoints)
        while not self._stopped.is_set():
            wait_ms = 1 if self._due else 20
            while (received := transport.receive(wait_ms)) is not None:
                frame, payload, _ = received
                self._serve(transport, frame, payload)
            for session, (when, index) in list(self._due.items()):
                if time.monotonic() >= when and self.script.admitted.is_set():
                    self._send_tokens(transport, session, index)
        transport.close()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join(WITHIN_S)

    def states(self, work: Work) -> SessionStates:
        """Return the sessions that are open here, as ones for which there is always something to do."""
        assert isinstance(work, SessionCheck)
        is_open = {
            name: (session := int(name, 16)) in self.openings and session not in self.closed for name in work.sessions
        }
        return SessionStates(1, tuple(SessionState(name, active=True) for name in work.sessions if is_open[name]))

    def _serve(self, transport: Transport, frame: Frame, payload: Payload) -> None:
        self.sequences.append(frame.sequence)
        self.epochs.add(frame.epoch)
        if frame.flags & Flag.OPEN:
            self.openings[frame.session] = msgspec.msgpack.decode(payload.tobytes(), type=Opening)
            self._due[frame.session] = (time.monotonic(), 0)
            queue_positions = [(Flag.QUEUE_POSITION, _queue_position(ahead, 0)) for ahead in self.script.ahead]
            for flags, reply in (*self.script.malformed, *queue_positions):
                transport.send(best_endpoint(self.openings[frame.session].reply_to), frame._replace(flags=flags), reply)
        elif frame.flags & Flag.CLOSE:
            self.closed.append(frame.session)
            self._due.pop(frame.session, None)

    def _send_tokens(self, transport: Transport, session: int, index: int) -> None:
        script, opening = self.script, self.openings[session]
        reply_to = best_endpoint(opening.reply_to)
        if index == 0 and script.cached >= 0:
            transport.send(reply_to, Frame(Flag.QUEUE_POSITION, EPOCH, session), _queue_position(0, script.cached))
        tokens = script.tokens[index : index + script.at_once]
        ends = [at for at, token in enumerate(tokens, index) if opening.finish_reason(token, at)]
        tokens = tokens[: ends[0] - index + 1] if ends else tokens
        flags = Flag.TOKEN | Flag.FINISHED if ends else Flag.TOKEN
        frame = Frame(flags, EPOCH, session, position=opening.first_position + index)
        for _ in range(0 if index <= script.lost < index + len(tokens) else 1 + script.twice):
            if tokens:
                transport.send(reply_to, frame, np.array(tokens, np.int32))
        if ends or not tokens:
            del self._due[session]
        else:
            self._due[session] = (time.monotonic() + script.pause_s, index + len(tokens))
        if not tokens and script.failure:
            payload = msgspec.msgpack.encode(script.failure)
            transport.send(reply_to, Frame(Flag.FAILED, EPOCH, session), payload)


def _queue_position(ahead: int, cached: int) -> Payload:
    return np.array((ahead, cached), np.int32)
