"""The numbers of messages: given out by a sender, and checked by whoever hears it. Pure; no sockets here.

A stream is what one sender says under one topic, or to one address. In a stream (life, sequence) only rises, where a
life is that of the sender's process; so a message that comes twice shows, and so does one that was lost.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from bus.messages import Header, Message
from bus.wire import new_header

MOST_STREAMS = 4096


class Sequencer:
    """Makes the headers of one sender. `life` has to rise from one life of the process to the next."""

    def __init__(self, sender: str, life: int | None = None) -> None:
        self._sender = sender
        # The machine's clock since boot: unlike the time of day, it never goes back between two processes.
        self._life = time.monotonic_ns() if life is None else life
        self._last: OrderedDict[str, int] = OrderedDict()
        self._forgotten = 0  # the highest number of the streams that were forgotten: none may begin below it

    def header(self, message: Message, to: str, cause: str = "") -> Header:
        """The header of the next message to `to`: an address, or the kind of a fact. To be sent in this order."""
        sequence = self._last.pop(to, self._forgotten) + 1
        self._last[to] = sequence
        if len(self._last) > MOST_STREAMS:
            self._forgotten = max(self._forgotten, self._last.popitem(last=False)[1])
        return new_header(message, self._sender, sequence=sequence, life=self._life, cause=cause)


class ReplayFilter:
    """What was heard last in each stream; the streams that are quiet for longest are forgotten beyond a bound."""

    def __init__(self) -> None:
        self._last: OrderedDict[tuple[str, str], tuple[int, int]] = OrderedDict()

    def fresh(self, header: Header, to: str) -> bool:
        """Whether a message is newer than all that came in its stream; it then counts as heard."""
        stream, now = (header.sender, to), (header.life, header.sequence)
        if now <= self._last.get(stream, (header.life, 0)):
            return False
        self._last[stream] = now
        self._last.move_to_end(stream)
        if len(self._last) > MOST_STREAMS:
            self._last.popitem(last=False)
        return True

    def forget(self, node_id: str) -> None:
        """The link to a node ended. Its next one has keys of its own, in which nothing of the last can be repeated; and
        the node's machine may have been started anew, and its clock with it."""
        self._last = OrderedDict(item for item in self._last.items() if item[0][0].partition("/")[0] != node_id)
