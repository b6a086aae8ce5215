"""Which kinds cross a link, by role. Every kind is listed, so that a new one must be added."""

from __future__ import annotations

import pytest

from bus.messages import MESSAGES, Fact, LocalFact, Query, Reply, Work
from bus.peering.permissions import may_send
from cluster.roles import Role

LINKS = {"link.hello", "link.subscribe", "link.bye"}
OBSERVER_WORK = LINKS | {"hub.describe", "members.get", "link.probe", "topology.get", "request.cancel", "request.check"}
GATEWAY_FACTS = {
    "actor.down", "download.failed", "download.progress", "log", "session.finished", "session.token", "status",
}  # fmt: skip
MEMBER_FACTS = {
    "engine.stats", "instance.down", "instance.failed", "instance.up", "link.measured", "node.record",
}  # fmt: skip
GATEWAY_WORK = {"instance.ensure", "session.check"}
MEMBER_WORK = {"cluster.code", "member.approve", "member.revoke", "shard.load", "shard.unload", "instance.join"}
WITHIN_A_NODE = {
    "actor.hello", "actor.start", "actor.stop", "cluster.rotate", "download.want", "engine.load", "join.request",
    "join.accept", "model.describe", "peer.dial", "peer.drop", "engine.describe", "stage.drain", "stage.join",
    "instance.unload",
}  # fmt: skip
REPLIES = {kind for kind, cls in MESSAGES.items() if issubclass(cls, Reply)} - {"join.accept"}
LOCAL = {kind for kind, cls in MESSAGES.items() if issubclass(cls, LocalFact)}

SENT = {
    Role.OBSERVER: OBSERVER_WORK | REPLIES,
    Role.GATEWAY: OBSERVER_WORK | REPLIES | GATEWAY_FACTS | GATEWAY_WORK,
    Role.MEMBER: OBSERVER_WORK | REPLIES | GATEWAY_FACTS | GATEWAY_WORK | MEMBER_FACTS | MEMBER_WORK,
}

every_role = pytest.mark.parametrize("role", Role)


@every_role
def test_role_may_send_exactly_these_kinds(role: Role) -> None:
    assert {kind for kind in MESSAGES if may_send(role, kind)} == SENT[role]


def test_every_kind_is_listed() -> None:
    assert SENT[Role.MEMBER] | WITHIN_A_NODE | LOCAL == MESSAGES.keys()


def test_observer_sends_queries_and_replies_only() -> None:
    sent = {MESSAGES[kind] for kind in MESSAGES if may_send(Role.OBSERVER, kind)}
    assert not [cls for cls in sent if issubclass(cls, Fact)]
    assert {cls.__name__ for cls in sent if issubclass(cls, Work) and not issubclass(cls, Query)} == {
        "RequestCancel", "LinkHello", "LinkSubscribe", "LinkBye",
    }  # fmt: skip


def test_only_a_member_may_send_unknown_kinds() -> None:
    assert [role for role in Role if may_send(role, "from.the.future")] == [Role.MEMBER]
