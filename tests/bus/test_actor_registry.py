"""Actors by name, process and routing id."""

from __future__ import annotations

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


def test_silent_actor_is_forgotten() -> None:
    registry = ActorRegistry()
    registry.register(ActorHello("old", 1), b"1", 0.0)
    registry.register(ActorHello("new", 2), b"2", SILENT_AFTER_S - 1)
    assert registry.present(SILENT_AFTER_S) == (HubActor("new", 2),)
    assert registry.routing_id("old") is None


def test_unknown_actor_has_no_routing_id() -> None:
    registry = ActorRegistry()
    registry.forget("unknown")
    assert registry.routing_id("unknown") is None
    assert registry.present(0.0) == ()
