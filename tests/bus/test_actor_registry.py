"""Who is on a node, as its hub knows it."""

from __future__ import annotations

from bus.actor_registry import SILENT_AFTER_S, ActorRegistry
from bus.messages import ActorHello, HubActor


def test_an_actor_is_met_once_and_again_with_a_new_process() -> None:
    roster = ActorRegistry()
    assert roster.meet(ActorHello("node", 7), b"one", 0.0)
    assert not roster.meet(ActorHello("node", 7), b"one", 1.0)
    assert roster.meet(ActorHello("node", 8), b"two", 2.0)
    assert roster.routing_id("node") == b"two"


def test_the_same_process_may_come_back_on_a_new_connection() -> None:
    roster = ActorRegistry()
    roster.meet(ActorHello("node", 7), b"one", 0.0)
    assert not roster.meet(ActorHello("node", 7), b"two", 1.0)
    assert roster.routing_id("node") == b"two"


def test_who_fell_silent_is_forgotten() -> None:
    roster = ActorRegistry()
    roster.meet(ActorHello("old", 1), b"1", 0.0)
    roster.meet(ActorHello("new", 2), b"2", SILENT_AFTER_S - 1)
    assert roster.present(SILENT_AFTER_S) == (HubActor("new", 2),)
    assert roster.routing_id("old") is None


def test_a_stranger_has_no_routing_id_and_is_easily_forgotten() -> None:
    roster = ActorRegistry()
    roster.forget("nobody")
    assert roster.routing_id("nobody") is None
    assert roster.present(0.0) == ()
