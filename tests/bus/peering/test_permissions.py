"""Which kinds cross a link, by role. Every kind is listed, so that a new one has to be decided about."""

from __future__ import annotations

import pytest

from bus.messages import MESSAGES, Fact, LocalFact, Query, Reply, Work
from bus.peering.permissions import may_send
from cluster.roles import Role

LINKS = {"link.hello", "link.subscribe", "link.bye"}
OBSERVERS_WORK = LINKS | {"hub.describe", "members.get", "link.probe", "topology.get", "request.cancel"}
GATEWAYS_FACTS = {
    "actor.down", "download.failed", "download.progress", "log", "session.finished", "session.token", "status",
}  # fmt: skip
MEMBERS_FACTS = {
    "engine.stats", "instance.down", "instance.failed", "instance.up", "link.measured", "node.record",
}  # fmt: skip
MEMBERS_WORK = {"cluster.code", "member.approve", "member.revoke", "shard.load", "shard.unload", "stage.join"}
WITHIN_A_NODE = {
    "actor.hello", "actor.start", "actor.stop", "cluster.rotate", "download.want", "engine.load", "join.request",
    "join.accept", "peer.dial", "peer.drop", "stage.drain",
}  # fmt: skip
REPLIES = {kind for kind, cls in MESSAGES.items() if issubclass(cls, Reply)} - {"join.accept"}
LOCAL = {kind for kind, cls in MESSAGES.items() if issubclass(cls, LocalFact)}

SENT = {
    Role.OBSERVER: OBSERVERS_WORK | REPLIES,
    Role.GATEWAY: OBSERVERS_WORK | REPLIES | GATEWAYS_FACTS | {"instance.ensure"},
    Role.MEMBER: OBSERVERS_WORK | REPLIES | GATEWAYS_FACTS | {"instance.ensure"} | MEMBERS_FACTS | MEMBERS_WORK,
}

every_role = pytest.mark.parametrize("role", Role)


@every_role
def test_a_role_sends_these_kinds_and_no_other(role: Role) -> None:
    assert {kind for kind in MESSAGES if may_send(role, kind)} == SENT[role]


def test_every_kind_is_decided_about() -> None:
    assert SENT[Role.MEMBER] | WITHIN_A_NODE | LOCAL == MESSAGES.keys()


def test_an_observer_publishes_nothing_and_changes_nothing() -> None:
    sent = {MESSAGES[kind] for kind in MESSAGES if may_send(Role.OBSERVER, kind)}
    assert not [cls for cls in sent if issubclass(cls, Fact)]
    assert {cls.__name__ for cls in sent if issubclass(cls, Work) and not issubclass(cls, Query)} == {
        "RequestCancel", "LinkHello", "LinkSubscribe", "LinkBye",
    }  # fmt: skip


def test_only_a_member_may_be_newer_than_we_are() -> None:
    assert [role for role in Role if may_send(role, "from.the.future")] == [Role.MEMBER]
