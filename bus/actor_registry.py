"""The actors of one node as their hub knows them: pure bookkeeping of who said hello, and when. No sockets here."""

from __future__ import annotations

from typing import NamedTuple

from bus.messages import ActorHello, HubActor

SILENT_AFTER_S = 3.0  # actors say hello every second; one that stopped is forgotten


class _Known(NamedTuple):
    routing_id: bytes
    pid: int
    heard_at: float


class ActorRegistry:
    """Actors by name. Of two processes under one name, the one that spoke last counts. Times in seconds."""

    def __init__(self) -> None:
        self._actors: dict[str, _Known] = {}

    def meet(self, hello: ActorHello, routing_id: bytes, now: float) -> bool:
        """Take in a hello; true where this process was not known."""
        known = self._actors.get(hello.name)
        self._actors[hello.name] = _Known(routing_id, hello.pid, now)
        return known is None or known.pid != hello.pid

    def heard(self, name: str, routing_id: bytes, now: float) -> None:
        """An actor spoke: answers go where it spoke from, also before its hello (after a restart of the hub)."""
        known = self._actors.get(name)
        self._actors[name] = _Known(routing_id, known.pid if known else 0, now)

    def routing_id(self, name: str) -> bytes | None:
        """Where frames for an actor go; None for a stranger."""
        known = self._actors.get(name)
        return known.routing_id if known else None

    def forget(self, name: str) -> None:
        """Its connection is gone."""
        self._actors.pop(name, None)

    def present(self, now: float) -> tuple[HubActor, ...]:
        """Who is there, by name; who fell silent is forgotten."""
        self._actors = {n: known for n, known in self._actors.items() if now - known.heard_at < SILENT_AFTER_S}
        return tuple(HubActor(name, known.pid) for name, known in sorted(self._actors.items()) if known.pid)
