"""A first stage for tests: it tells a prepared text to every session, over the real data plane."""

from __future__ import annotations

import queue
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np

from bus.frame import Flag, Frame
from bus.ring import Array, Ring, best_endpoint
from cluster.sessions import Opening

EPOCH = 7
WITHIN_S = 15.0


@dataclass
class Telling:
    """What the stage says to every session, and how."""

    tokens: list[int] = field(default_factory=list)
    silent: bool = False  # after `tokens`, nothing: neither end nor failure
    failure: str = ""  # after `tokens`, this failure
    pause_s: float = 0.0
    skip: int = -1  # the index of a token that is lost
    twice: bool = False  # each frame comes a second time


class StageThread(threading.Thread):
    """A first stage that is also the last: answers an opening with what `telling` says."""

    def __init__(self, run_dir: Path) -> None:
        super().__init__(name="stage", daemon=True)
        self.telling = Telling()
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
        ring = Ring(self._run_dir, "stage", "127.0.0.1")
        self.endpoints.put(ring.endpoints)
        while not self._stopped.is_set():
            wait_ms = 1 if self._due else 20
            while (received := ring.receive(wait_ms)) is not None:
                self._serve(*received)
            for session, (when, index) in list(self._due.items()):
                if time.monotonic() >= when:
                    self._tell(ring, session, index)
        ring.close()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self.join(WITHIN_S)

    def _serve(self, frame: Frame, payload: Array) -> None:
        self.sequences.append(frame.sequence)
        self.epochs.add(frame.epoch)
        if frame.flags & Flag.OPEN:
            self.openings[frame.session] = msgspec.msgpack.decode(payload.tobytes(), type=Opening)
            self._due[frame.session] = (time.monotonic(), 0)
        elif frame.flags & Flag.CLOSE:
            self.closed.append(frame.session)
            self._due.pop(frame.session, None)

    def _tell(self, ring: Ring, session: int, index: int) -> None:
        telling, opening = self.telling, self.openings[session]
        reply_to = best_endpoint(opening.reply_to)
        if index >= len(telling.tokens):
            del self._due[session]
            if telling.failure:
                ring.send(reply_to, Frame(Flag.FAILED, EPOCH, session), telling.failure.encode())
            return
        token = telling.tokens[index]
        finished = bool(opening.finish_reason(token, index))
        flags = Flag.TOKEN | Flag.FINISHED if finished else Flag.TOKEN
        frame = Frame(flags, EPOCH, session, position=opening.prompt_tokens + index)
        for _ in range(0 if index == telling.skip else 1 + telling.twice):
            ring.send(reply_to, frame, np.array([token], np.int32))
        self._due[session] = (time.monotonic() + telling.pause_s, index + 1)
        if finished:
            del self._due[session]
