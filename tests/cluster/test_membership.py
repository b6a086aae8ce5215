"""`cluster.membership`: whatever the order of events, a revoked node stays out and a strict cluster asks first."""

from __future__ import annotations

from contextlib import suppress

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import membership as module
from cluster.membership import JoinRefused, Member, Membership, MemberStatus
from cluster.roles import Role

ids = st.sampled_from([f"{n:016x}" for n in range(4)])
events = st.lists(st.tuples(st.sampled_from(["join", "revoke", "approve"]), ids), max_size=30)


def join(members: Membership, node_id: str, name: str = "laptop") -> Membership:
    return members.admit(node_id, name, node_id * 4, Role.MEMBER)


@given(events, st.booleans())
def test_last_decision_about_a_node_counts(events: list[tuple[str, str]], strict: bool) -> None:
    members = Membership("home", strict)
    expected: dict[str, bool] = {}
    for event, node_id in events:
        if event == "join":
            expected.setdefault(node_id, not strict)
            with suppress(JoinRefused):
                members = join(members, node_id)
        elif event == "revoke":
            expected[node_id] = False
            members = members.revoke([node_id])
        elif node_id in members.by_id:
            expected[node_id] = True
            members = members.approve(node_id)
    assert {node_id for node_id, approved in expected.items() if approved} == {
        node_id for node_id in members.by_id if members.member(node_id)
    }


def test_revoked_node_is_refused_with_the_reason() -> None:
    members = join(Membership("home"), "a" * 16).revoke(["a" * 16])
    sentence = r"the key of laptop \(aaaaaaaaaaaaaaaa\) was revoked in cluster home"
    with pytest.raises(JoinRefused, match=sentence) as refused:
        join(members, "a" * 16)
    assert refused.value.code == "revoked"


def test_node_can_be_revoked_before_it_joins() -> None:
    with pytest.raises(JoinRefused):
        join(Membership("home").revoke(["a" * 16]), "a" * 16)


def test_unknown_node_is_not_a_member() -> None:
    with pytest.raises(JoinRefused, match=r"node aaaaaaaaaaaaaaaa is not a member of cluster home"):
        Membership("home").require("a" * 16)


def test_known_name_with_a_new_key_is_admitted() -> None:
    members = join(join(Membership("home"), "a" * 16), "b" * 16)
    assert [m.node_id for m in members.with_same_name(members.require("b" * 16))] == ["a" * 16]


def test_strict_cluster_refuses_an_unapproved_key() -> None:
    members = join(join(Membership("home"), "a" * 16), "b" * 16)
    strict = Membership("home", True, {"a" * 16: members.by_id["a" * 16]})
    assert strict.require("a" * 16).status is MemberStatus.APPROVED
    pending = join(strict, "b" * 16)
    sentence = r"strict and the key of laptop is new \(another key has this name\); approve it there with"
    with pytest.raises(JoinRefused, match=sentence) as refused:
        pending.require("b" * 16)
    assert refused.value.code == "unapproved"
    assert pending.approve("b" * 16).require("b" * 16).name == "laptop"


def test_unknown_node_cannot_be_approved() -> None:
    with pytest.raises(KeyError):
        Membership("home").approve("a" * 16)


def test_name_may_change_and_status_stays() -> None:
    members = join(join(Membership("home"), "a" * 16).revoke(["b" * 16]), "a" * 16, "desktop")
    assert members.require("a" * 16).name == "desktop"
    assert members.revoked == ("b" * 16,)


def test_number_of_keys_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_MEMBERS", 2)
    members = join(join(Membership("home"), "a" * 16), "b" * 16)
    with pytest.raises(JoinRefused, match="has 2 nodes on file already"):
        join(members, "c" * 16)
    assert join(members, "b" * 16, "again").require("b" * 16).name == "again"
    assert members.revoke(["c" * 16, "a" * 16]).revoked == ("a" * 16,)


@pytest.mark.parametrize("missing", ["role", "status"])
def test_member_without_a_role_or_status_is_unreadable(missing: str) -> None:
    fields = {"node_id": "a" * 16, "name": "laptop", "key": "", "role": "member", "status": "approved"}
    del fields[missing]
    with pytest.raises(msgspec.ValidationError, match=missing):
        msgspec.convert(fields, Member)
