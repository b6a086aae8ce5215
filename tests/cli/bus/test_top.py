"""What `exobus bus top` counts."""

from __future__ import annotations

from bus.messages import VERSION, Header, LinkProbe, Status
from bus.wire import Envelope
from cli.bus.top import Traffic


def fact(sequence: int, life: int = 1, topic: str = "status") -> Envelope:
    return Envelope(topic, Header(VERSION, "status", "id", "node/actor", sequence, life=life), Status("m", "text"))


def test_losses_are_gaps_within_a_senders_life() -> None:
    traffic = Traffic()
    for envelope in (fact(4), fact(5), fact(8), fact(1, life=2), fact(2, life=2), fact(4, life=2)):
        traffic.count(envelope, 10)
    (row,) = traffic.report(1.0)
    assert (row["lost"], row["messages_per_s"]) == (3, 6.0)


def test_tapped_work_has_no_losses() -> None:
    traffic = Traffic()
    for sequence in (1, 7, 3):
        header = Header(VERSION, "link.probe", "id", "node/actor", sequence, life=1)
        traffic.count(Envelope("tap.link.probe", header, LinkProbe()), 10)
    assert traffic.report(1.0)[0]["lost"] == 0
