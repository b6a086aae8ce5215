"""Which messages of another node pass: by key, sender, role and sequence number."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from bus.messages import Fact, LinkProbe, Message, ShardUnload, Status, kind_of
from bus.peering.authenticator import Authenticator
from bus.peering.inbound_policy import Forbidden, InboundPolicy
from bus.peering.member_store import write_members
from bus.sequencing import Sequencer
from bus.wire import WireError
from cluster.membership import Member, Membership, MemberStatus
from cluster.roles import Role
from tests.support.bus import KEYS, code_of, hub_config, new_node, run_folder

A, MEMBER, OBSERVER, UNKNOWN = new_node(), new_node(), new_node(), new_node()
SEQUENCERS = {node: Sequencer(f"{node}/node") for node in (MEMBER, OBSERVER, UNKNOWN)}


@pytest.fixture
def policy() -> Iterator[InboundPolicy]:
    """Make the policy of node A, which has a member and an observer."""
    roles = {MEMBER: Role.MEMBER, OBSERVER: Role.OBSERVER}
    with run_folder() as folder:
        known = {
            n: Member(n, f"name of {n}", KEYS[n].public.hex(), role, MemberStatus.APPROVED) for n, role in roles.items()
        }
        write_members(folder, Membership("home", by_id=known))
        yield InboundPolicy(Authenticator(hub_config(folder, A), code_of("home")))


def frames_of(node: str, message: Message) -> list[bytes]:
    to = kind_of(type(message)) if isinstance(message, Fact) else f"{A}/node"
    return SEQUENCERS[node].encode(to, message)


def test_messages_of_a_member_pass_once(policy: InboundPolicy) -> None:
    for message in (Status("m", "text"), ShardUnload("i", 1), LinkProbe()):
        frames = frames_of(MEMBER, message)
        assert policy.check(MEMBER, frames).kind == kind_of(type(message))
        with pytest.raises(WireError, match="replayed"):
            policy.check(MEMBER, frames)


def test_unknown_node_is_refused(policy: InboundPolicy) -> None:
    with pytest.raises(WireError, match="foreign"):
        policy.check(UNKNOWN, frames_of(UNKNOWN, LinkProbe()))


@pytest.mark.parametrize(
    "sender", [f"{OBSERVER}/node", f"{A}/hub", "/hub", "hub"], ids=["other", "own", "no node", "bare"]
)
def test_sender_of_another_node_is_refused(policy: InboundPolicy, sender: str) -> None:
    with pytest.raises(WireError, match="sender"):
        policy.check(MEMBER, Sequencer(sender).encode(f"{A}/node", LinkProbe()))


def test_kind_beyond_the_role_is_forbidden(policy: InboundPolicy) -> None:
    assert policy.check(OBSERVER, frames_of(OBSERVER, LinkProbe()))
    for message in (Status("m", "text"), ShardUnload("i", 1)):
        with pytest.raises(Forbidden, match="not allowed") as refused:
            policy.check(OBSERVER, frames_of(OBSERVER, message))
        assert refused.value.sentence.startswith(f"the role observer may not send {refused.value.header.kind}")


def test_forgotten_node_may_start_again(policy: InboundPolicy) -> None:
    policy.check(MEMBER, Sequencer(f"{MEMBER}/node", life=9).encode(f"{A}/node", LinkProbe()))
    again = Sequencer(f"{MEMBER}/node", life=1).encode(f"{A}/node", LinkProbe())
    with pytest.raises(WireError, match="replayed"):
        policy.check(MEMBER, again)
    policy.forget(MEMBER)
    assert policy.check(MEMBER, again).life == 1
