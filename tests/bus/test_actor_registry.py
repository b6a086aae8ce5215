"""Actors by name, process and routing id."""

from __future__ import annotations

from collections import Counter

from bus.actor_registry import SILENT_AFTER_S, ActorRegistry
from bus.messages import ActorHello, HubActor


def test_only_a_new_process_is_new() -> None:
    registry = ActorRegistry()
    assert registry.register(ActorHello("node", 7), b"one", 0.0)
    assert not registry.register(ActorHello("node", 7), b"one", 1.0)
    assert registry.register(ActorHello("node", 8), b"two", 2.0)
    assert registry.routing_id("node") == b"two"


def test_reconnected_process_keeps_its_entry() -> None:
    registry = ActorRegistry()
    registry.register(ActorHello("node", 7), b"one", 0.0)
    assert not registry.register(ActorHello("node", 7), b"two", 1.0)
    assert registry.routing_id("node") == b"two"


def test_silent_actor_is_kept_while_connected() -> None:
    registry = ActorRegistry()
    registry.register(ActorHello("frozen", 1), b"1", 0.0)
    registry.register(ActorHello("gone", 2), b"2", 0.0)
    registry.register(ActorHello("new", 3), b"3", SILENT_AFTER_S - 1)
    registry.touch("never registered", b"4", 0.0)
    connected = {b"1", b"3", b"4"}
    kept = (HubActor("frozen", 1, SILENT_AFTER_S), HubActor("new", 3, 1.0))
    assert registry.present(SILENT_AFTER_S, connected.__contains__) == kept
    assert [registry.routing_id(name) for name in ("frozen", "gone", "never registered")] == [b"1", None, None]


def test_connection_is_tried_every_three_seconds() -> None:
    registry, tried = ActorRegistry(), Counter[bytes]()
    registry.register(ActorHello("frozen", 1), b"1", 0.0)

    def is_connected(routing_id: bytes) -> bool:
        tried[routing_id] += 1
        return True

    for tenth in range(100):
        registry.present(tenth / 10, is_connected)
    assert tried == {b"1": 3}


def test_unknown_actor_has_no_routing_id() -> None:
    registry = ActorRegistry()
    registry.forget("unknown")
    assert registry.routing_id("unknown") is None
    assert registry.present(0.0, lambda routing_id: True) == ()
