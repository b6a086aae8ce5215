"""The actors of one node as their hub knows them: names, processes and routing ids."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from bus.messages import ActorHello, HubActor

SILENT_AFTER_S = 3.0  # actors register every second


class _Actor(NamedTuple):
    routing_id: bytes
    pid: int
    seen_at: float
    connected_at: float  # when it was known to be connected


class ActorRegistry:
    """Actors by name. If two processes have the same name, the one that sent last counts. Times are in seconds."""

    def __init__(self) -> None:
        self._actors: dict[str, _Actor] = {}

    def register(self, hello: ActorHello, routing_id: bytes, now: float) -> bool:
        """Register an actor. Returns whether its process is new."""
        known = self._actors.get(hello.name)
        self._actors[hello.name] = _Actor(routing_id, hello.pid, now, now)
        return known is None or known.pid != hello.pid

    def touch(self, name: str, routing_id: bytes, now: float) -> None:
        """Note that an actor sent something, so that replies reach it even before it registers with a new hub."""
        known = self._actors.get(name)
        self._actors[name] = _Actor(routing_id, known.pid if known else 0, now, now)

    def routing_id(self, name: str) -> bytes | None:
        """Return the routing id of an actor's connection, or None if it is unknown."""
        known = self._actors.get(name)
        return known.routing_id if known else None

    def forget(self, name: str) -> None:
        """Remove an actor that has lost its connection."""
        self._actors.pop(name, None)

    def present(self, now: float, is_connected: Callable[[bytes], bool]) -> tuple[HubActor, ...]:
        """Return the registered actors, by name.

        A silent one is kept while its connection stands, which `is_connected` finds out of a routing id: it may be
        frozen. Silent senders that never registered are forgotten.
        """
        for name, actor in list(self._actors.items()):
            if now - actor.connected_at < SILENT_AFTER_S:
                continue
            if actor.pid and is_connected(actor.routing_id):
                self._actors[name] = actor._replace(connected_at=now)
            else:
                del self._actors[name]
        known = sorted(self._actors.items())
        return tuple(HubActor(name, actor.pid, max(now - actor.seen_at, 0.0)) for name, actor in known if actor.pid)
