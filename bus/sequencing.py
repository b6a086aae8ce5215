"""Sequence numbers of messages: assigned by a sender, and checked by a receiver.

A stream is all that one sender sends to one address, or publishes under one topic. In a stream (life, sequence) only
rises, where `life` stands for one process of the sender. So a receiver notices a message that comes twice.
"""

from __future__ import annotations

import time

from cachetools import LRUCache

from bus.address import Address
from bus.messages import Header, Message
from bus.wire import encode, new_header

MAX_STREAMS = 4096


class Sequencer:
    """Makes the headers of one sender. `life` has to rise from one process of the sender to the next."""

    def __init__(self, sender: str, life: int | None = None) -> None:
        self._sender = sender
        # The machine's clock since boot: unlike the time of day, it never goes back between two processes.
        self._life = time.monotonic_ns() if life is None else life
        self._last: LRUCache[str, int] = LRUCache(MAX_STREAMS)
        self._highest_evicted = 0  # no stream may begin below it: it may have been evicted itself

    def header(self, message: Message, to: str, cause: str = "") -> Header:
        """Return the header of the next message to an address or topic. Messages must be sent in the order of calls."""
        sequence = self._last.get(to, self._highest_evicted) + 1
        if to not in self._last and len(self._last) == MAX_STREAMS:
            self._highest_evicted = max(self._highest_evicted, self._last.popitem()[1])
        self._last[to] = sequence
        return new_header(message, self._sender, sequence=sequence, life=self._life, cause=cause)

    def encode(self, to: Address | str, message: Message, cause: str = "") -> list[bytes]:
        """Return the frames of the next message to an address or topic. Raises WireError."""
        return encode(to, self.header(message, str(to), cause), message)


class ReplayFilter:
    """Remembers the last message of each stream; beyond a bound it forgets the streams that were idle for longest."""

    def __init__(self) -> None:
        self._last: LRUCache[tuple[str, str], tuple[int, int]] = LRUCache(MAX_STREAMS)

    def accept(self, header: Header, to: str) -> bool:
        """Return whether a message is newer than all that came before it in its stream, and remember it if so."""
        stream, number = (header.sender, to), (header.life, header.sequence)
        if number <= self._last.get(stream, (header.life, 0)):
            return False
        self._last[stream] = number
        return True

    def forget(self, node_id: str) -> None:
        """Forget the streams of a node that is not linked any more.

        Its next link has other session keys, under which no old message can be replayed; and the node's machine may
        have been restarted, and its clock with it.
        """
        for stream in [stream for stream in self._last if Address.parse(stream[0]).node == node_id]:
            del self._last[stream]
