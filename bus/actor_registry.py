"""The actors of one node as their hub knows them: names, processes and routing ids."""

from __future__ import annotations

from typing import NamedTuple

from bus.messages import ActorHello, HubActor

SILENT_AFTER_S = 3.0  # actors register every second; one that stops is forgotten


class _Actor(NamedTuple):
    routing_id: bytes
    pid: int
    seen_at: float


class ActorRegistry:
    """Actors by name. If two processes have the same name, the one that sent last counts. Times are in seconds."""

    def __init__(self) -> None:
        self._actors: dict[str, _Actor] = {}

    def register(self, hello: ActorHello, routing_id: bytes, now: float) -> bool:
        """Register an actor. Returns whether its process is new."""
        known = self._actors.get(hello.name)
        self._actors[hello.name] = _Actor(routing_id, hello.pid, now)
        return known is None or known.pid != hello.pid

    def touch(self, name: str, routing_id: bytes, now: float) -> None:
        """Note that an actor sent something, so that replies reach it even before it registers with a new hub."""
        known = self._actors.get(name)
        self._actors[name] = _Actor(routing_id, known.pid if known else 0, now)

    def routing_id(self, name: str) -> bytes | None:
        """Return the routing id of an actor's connection, or None if it is unknown."""
        known = self._actors.get(name)
        return known.routing_id if known else None

    def forget(self, name: str) -> None:
        """Remove an actor whose connection is gone."""
        self._actors.pop(name, None)

    def present(self, now: float) -> tuple[HubActor, ...]:
        """Return the registered actors, by name, and forget those that are silent."""
        self._actors = {name: actor for name, actor in self._actors.items() if now - actor.seen_at < SILENT_AFTER_S}
        return tuple(HubActor(name, actor.pid) for name, actor in sorted(self._actors.items()) if actor.pid)
