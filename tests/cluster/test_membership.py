"""Who belongs to the cluster, as a pure value: whatever happens, a revoked node stays out and a strict one is asked."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import membership as module
from cluster.membership import JoinRefused, Membership, MemberStatus
from cluster.roles import Role

ids = st.sampled_from([f"{n:016x}" for n in range(4)])
steps = st.lists(st.tuples(st.sampled_from(["knock", "revoke", "approve"]), ids), max_size=30)


def knock(members: Membership, node_id: str, name: str = "laptop") -> Membership:
    return members.judge(node_id, name, node_id * 4, Role.MEMBER)


@given(steps, st.booleans())
def test_a_node_is_in_exactly_when_the_last_word_about_it_let_it_in(words: list[tuple[str, str]], strict: bool) -> None:
    members = Membership("home", strict)
    expected: dict[str, bool] = {}
    for word, node_id in words:
        if word == "knock":
            expected.setdefault(node_id, not strict)
            with suppress(JoinRefused):
                members = knock(members, node_id)
        elif word == "revoke":
            expected[node_id] = False
            members = members.revoke([node_id])
        elif node_id in members.by_id:
            expected[node_id] = True
            members = members.approve(node_id)
    assert {node_id for node_id, inside in expected.items() if inside} == {
        node_id for node_id in members.by_id if members.let_in(node_id)
    }


def test_a_revoked_node_is_told_so() -> None:
    members = knock(Membership("home"), "a" * 16).revoke(["a" * 16])
    with pytest.raises(
        JoinRefused, match=r"the key of laptop \(aaaaaaaaaaaaaaaa\) was revoked in cluster home"
    ) as refused:
        knock(members, "a" * 16)
    assert refused.value.code == "revoked"


def test_a_node_can_be_revoked_before_it_ever_came() -> None:
    with pytest.raises(JoinRefused):
        knock(Membership("home").revoke(["a" * 16]), "a" * 16)


def test_a_known_name_with_a_new_key_is_let_in_and_shown() -> None:
    members = knock(knock(Membership("home"), "a" * 16), "b" * 16)
    assert [m.node_id for m in members.namesakes(members.check("b" * 16))] == ["a" * 16]


def test_a_strict_cluster_refuses_a_known_name_with_a_new_key_until_somebody_approves_it() -> None:
    members = knock(knock(Membership("home"), "a" * 16), "b" * 16)
    strict = Membership("home", True, {"a" * 16: members.by_id["a" * 16]})
    assert strict.check("a" * 16).standing is MemberStatus.APPROVED
    waiting = knock(strict, "b" * 16)
    sentence = "strict and laptop is a new key whose name is known under another key; approve it there with"
    with pytest.raises(JoinRefused, match=sentence) as refused:
        waiting.check("b" * 16)
    assert refused.value.code == "unapproved"
    assert waiting.approve("b" * 16).check("b" * 16).name == "laptop"


def test_a_node_that_never_knocked_cannot_be_approved() -> None:
    with pytest.raises(KeyError):
        Membership("home").approve("a" * 16)


def test_a_name_may_change_but_not_what_a_node_is_to_us() -> None:
    members = knock(knock(Membership("home"), "a" * 16).revoke(["b" * 16]), "a" * 16, "desk")
    assert members.check("a" * 16).name == "desk"
    assert members.revoked == ("b" * 16,)


def test_no_holder_of_the_code_can_fill_our_memory_with_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 2)
    members = knock(knock(Membership("home"), "a" * 16), "b" * 16)
    with pytest.raises(JoinRefused, match="remembers 2 nodes already"):
        knock(members, "c" * 16)
    assert knock(members, "b" * 16, "again").check("b" * 16).name == "again"
    assert members.revoke(["c" * 16, "a" * 16]).revoked == ("a" * 16,)
