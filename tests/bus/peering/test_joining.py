"""Joining, between real hubs on loopback: who is let in at the join port, who is told why not, what a decision
changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import replace
from typing import Any

import pytest
import zmq

from bus.client import BusClient, RequestError
from bus.hub import Hub
from bus.messages import (
    ClusterChanged,
    ClusterRotate,
    ClusterRotated,
    HubDescribe,
    HubState,
    InstanceEnsure,
    JoinAccept,
    JoinRequest,
    LinkProbe,
    Log,
    MemberApprove,
    MemberRevoke,
    MembersGet,
    MembersState,
    Message,
    PeerAuthenticated,
    PeerDial,
    PeerDown,
    PeerRefused,
    PeerUp,
    RequestDone,
    RequestFailed,
    Status,
)
from bus.net.endpoints import with_key
from bus.net.keys import KeyPair, join_proof, key_pair_of, new_key_pair
from bus.net.sockets import connect, open_socket
from bus.peering import peering as outside
from bus.peering.authenticator import Authenticator
from bus.peering.member_store import read_members
from bus.wire import decode, encode, new_header
from cluster.failures import FailureCode
from cluster.join_code import JoinCode, new_join_code, parse_join_code
from cluster.membership import MemberStatus
from cluster.roles import Role
from common.private_files import read_private
from tests.support.bus import (
    KEYS,
    RunningHub,
    client,
    code_of,
    described,
    heard,
    hub_config,
    link,
    new_node,
    run_folder,
    running_hub,
    serving,
)

A, B, C = new_node(), new_node(), new_node()
FACTS: tuple[type[Message], ...] = (PeerAuthenticated, PeerRefused, PeerUp, PeerDown, ClusterChanged)


SOMEBODY_KNOCKED = "somebody knocked with a wrong join code for cluster home"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def on(hub: RunningHub, name: str = "one") -> Any:
    return client(hub.run_dir, hub.node_id, name, *FACTS)


async def dial(bus: BusClient, hub: RunningHub) -> None:
    await bus.request("hub", PeerDial(hub.join_endpoint), RequestDone, 5.0)


async def members(bus: BusClient) -> dict[str, MemberStatus]:
    state = await bus.request("hub", MembersGet(), MembersState, 5.0)
    return {member.node_id: member.status for member in state.members}


def knock_at(
    hub: RunningHub, pair: KeyPair, code: JoinCode | None = None, knock: JoinRequest | None = None
) -> Message | None:
    """What the join port answers to a knock with a key of one's own; None where it answers nothing."""
    keys = (code or code_of("home")).keys()
    join_endpoint = key_pair_of(keys.join_secret).public
    role = next(iter(keys.join))
    proof = join_proof(keys.join, role, pair.public, join_endpoint)
    sent = knock or JoinRequest("guest", role, 1, with_key("tcp://127.0.0.1:1", pair.public), proof)
    with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
        dealer.setsockopt(zmq.SNDTIMEO, 2000)
        connect(dealer, with_key(hub.join_endpoint, join_endpoint), pair)
        try:
            dealer.send_multipart(encode("/hub", new_header(sent, f"{pair.node_id}/hub"), sent))
        except zmq.Again:
            return None
        return decode(dealer.recv_multipart()).message if dealer.poll(2000) else None


def test_two_holders_of_the_code_meet_at_the_gate_and_link() -> None:
    async def test(first: RunningHub, second: RunningHub) -> None:
        async with on(first) as one, on(second) as two:
            await link(one, second.join_endpoint)
            assert (await heard(one, PeerAuthenticated))[0] == PeerAuthenticated(
                second.join_endpoint, B, f"name of {B}"
            )
            up, _ = await heard(two, PeerUp)
            assert (up.node_id, up.endpoint, up.role) == (A, first.endpoint, Role.MEMBER)
            assert await members(one) == {B: MemberStatus.APPROVED}
            assert await members(two) == {A: MemberStatus.APPROVED}

    with running_hub(A) as first, running_hub(B) as second:
        run(test(first, second))


def test_who_knows_one_gate_is_linked_to_every_member() -> None:
    async def test(first: RunningHub, second: RunningHub, third: RunningHub) -> None:
        async with on(first) as one, on(second) as two, on(third) as three:
            await link(two, first.join_endpoint)
            await link(three, first.join_endpoint)
            for bus in (one, two, three):
                await described(bus, lambda state: len(state.peers) == 2)

    with running_hub(A) as first, running_hub(B) as second, running_hub(C) as third:
        run(test(first, second, third))


def test_a_wrong_code_is_refused_with_a_sentence_on_both_sides_and_knocks_once() -> None:
    async def test(home: RunningHub, guest: RunningHub) -> None:
        async with on(home) as host, on(guest) as knocker:
            await dial(knocker, home)
            there, _ = await heard(knocker, PeerRefused, within_s=3.0)
            here, _ = await heard(host, PeerRefused, within_s=3.0)
            assert (there.endpoint, there.code) == (home.join_endpoint, "wrong_code")
            assert there.message.startswith("wrong join code for cluster home: the join port at")
            assert here == PeerRefused(
                "", FailureCode.WRONG_CODE, "somebody knocked with a wrong join code for cluster home"
            )
            with pytest.raises(TimeoutError):
                await heard(host, PeerRefused, within_s=1.0)
            state = await host.request("hub", HubDescribe(), HubState, 5.0)
            assert state.counters["refused at join"] == 1

    with running_hub(A) as home, running_hub(B, code=new_join_code("home")) as guest:
        run(test(home, guest))


def test_the_gate_believes_no_knock_whose_proof_does_not_fit() -> None:
    pair, keys = new_key_pair(), code_of("home").keys()
    join_endpoint, endpoint = key_pair_of(keys.join_secret).public, with_key("tcp://127.0.0.1:1", new_key_pair().public)
    own = with_key("tcp://127.0.0.1:1", pair.public)
    proof = join_proof(keys.join, Role.MEMBER, pair.public, join_endpoint)
    observer = join_proof(keys.join, Role.OBSERVER, pair.public, join_endpoint)
    with running_hub(A) as hub:
        for knock in (
            JoinRequest("guest", Role.MEMBER, 1, own, b""),
            JoinRequest("guest", Role.MEMBER, 1, own, observer),
            JoinRequest("guest", Role.OBSERVER, 1, own, proof),
            JoinRequest("guest", Role.MEMBER, 1, endpoint, proof),
        ):
            answer = knock_at(hub, pair, knock=knock)
            assert answer == RequestFailed(FailureCode.WRONG_CODE, "wrong join code for cluster home")
        assert isinstance(knock_at(hub, pair), JoinAccept)


def test_a_gate_that_cannot_prove_itself_is_not_believed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has an observer's code can open a join port, with the join port's own key, but has no member's proof."""

    async def test(hub: RunningHub, liar: RunningHub) -> None:
        async with on(hub) as one:
            await dial(one, liar)
            refused, _ = await heard(one, PeerRefused)
            assert "does not belong to cluster home" in refused.message
            assert await members(one) == {}

    with running_hub(A) as hub, run_folder() as folder:
        config = hub_config(folder, B)
        door = Authenticator(config, code_of("home"))
        door.keys = replace(door.keys, join=dict.fromkeys(Role, bytes(32)))
        monkeypatch.setattr(door, "_proved", lambda knock, key: True)
        monkeypatch.setattr(Authenticator, "of", lambda config: door)
        with serving(Hub(config), folder) as liar:
            run(test(hub, liar))


def test_a_revoked_node_is_cut_off_at_once_and_refused_with_the_reason() -> None:
    async def test(first: RunningHub, second: RunningHub) -> None:
        async with on(first) as one, on(second) as two:
            await link(one, second.join_endpoint)
            await heard(two, PeerUp)
            await one.request("hub", MemberRevoke(B), RequestDone, 5.0)
            assert (await heard(one, PeerDown))[0] == PeerDown(B, "its key was revoked")
            assert (await heard(two, PeerDown))[0].node_id == A
            await dial(two, first)
            refused, _ = await heard(two, PeerRefused, within_s=3.0)
            assert refused.code == "revoked"
            assert "it was revoked in cluster home" in refused.message

    with running_hub(A) as first, running_hub(B) as second:
        run(test(first, second))


def test_what_a_revoked_node_still_sends_on_an_old_connection_is_dropped() -> None:
    async def test(first: RunningHub) -> None:
        async with on(first) as one, on(first, "worker") as worker:
            with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
                connect(dealer, first.endpoint, KEYS[B])
                probe = LinkProbe()
                dealer.send_multipart(encode(f"{A}/worker", new_header(probe, f"{B}/node", sequence=1), probe))
                await heard(worker, LinkProbe)
                await one.request("hub", MemberRevoke(B), RequestDone, 5.0)
                dealer.send_multipart(encode(f"{A}/worker", new_header(probe, f"{B}/node", sequence=2), probe))
                await described(one, lambda state: "dropped: foreign" in state.counters)

    with running_hub(A, knows=(B,)) as first:
        run(test(first))


def test_a_revocation_reaches_the_other_members_and_those_who_come_later() -> None:
    async def test(first: RunningHub, second: RunningHub, third: RunningHub) -> None:
        async with on(first) as one, on(second) as two, on(third) as three:
            await link(one, second.join_endpoint)
            await one.request("hub", MemberRevoke("f" * 16), RequestDone, 5.0)
            await until(two, {"f" * 16: MemberStatus.REVOKED})
            await link(three, second.join_endpoint)
            await until(three, {"f" * 16: MemberStatus.REVOKED})
            await one.request("hub", MemberApprove("f" * 16), RequestDone, 5.0)
            await until(two, {"f" * 16: MemberStatus.APPROVED})

    with running_hub(A) as first, running_hub(B) as second, running_hub(C) as third:
        run(test(first, second, third))


async def until(bus: BusClient, expected: dict[str, MemberStatus]) -> None:
    """Ask a hub for its members until these are among them."""
    async with asyncio.timeout(5.0):
        while not expected.items() <= (await members(bus)).items():  # noqa: ASYNC110 - each round asks the hub
            await asyncio.sleep(0)


def test_a_strict_hub_lets_nobody_in_until_the_key_is_approved() -> None:
    async def test(strict: RunningHub, guest: RunningHub) -> None:
        async with on(strict) as host, on(guest) as knocker:
            await dial(knocker, strict)
            refused, _ = await heard(knocker, PeerRefused)
            assert refused.code == "unapproved"
            assert f"exobus cluster approve {B}" in refused.message
            assert (await heard(host, PeerRefused))[0].code == "unapproved"
            await host.request("hub", MemberApprove(B), RequestDone, 5.0)
            await link(knocker, strict.join_endpoint)

    with running_hub(A, strict=True) as strict, running_hub(B) as guest:
        run(test(strict, guest))


def test_a_known_name_with_a_new_key_is_let_in_and_shown_to_the_owner() -> None:
    async def test(hub: RunningHub) -> None:
        async with on(hub) as one:
            for pair, news in ((KEYS[B], ""), (KEYS[C], f"guest joined with a new key ({C}), known before as {B}; ")):
                assert isinstance(await asyncio.to_thread(knock_at, hub, pair), JoinAccept)
                met, _ = await heard(one, PeerAuthenticated)
                assert (met.endpoint, met.node_id, met.name) == ("", pair.node_id, "guest")
                assert met.news.startswith(news)
                assert bool(met.news) is bool(news)

    with running_hub(A) as hub:
        run(test(hub))


def test_a_copied_key_is_refused_and_the_first_node_stays() -> None:
    async def test(first: RunningHub, second: RunningHub, copy: RunningHub) -> None:
        async with on(first) as one, on(second) as two, on(copy) as impostor:
            await link(two, first.join_endpoint)
            await heard(one, PeerUp)
            await dial(impostor, first)
            refused, _ = await heard(impostor, PeerRefused)
            assert refused.code == "duplicate"
            assert "runs somewhere else with the same key; if its data folder was copied" in refused.message
            await dial(impostor, second)
            assert (await heard(impostor, PeerRefused))[0].code == "duplicate"
            assert [peer.node_id for peer in (await described(two, lambda _: True)).peers] == [A]
            with pytest.raises(TimeoutError):
                await heard(one, PeerDown, within_s=0.3)

    with running_hub(A) as first, running_hub(B) as second, running_hub(B, incarnation=2) as copy:
        run(test(first, second, copy))


def test_a_node_that_restarts_is_let_in_again_with_its_own_key() -> None:
    async def test(first: RunningHub) -> None:
        async with on(first) as one:
            for life in (1, 2):
                with running_hub(B, incarnation=life) as second:
                    async with on(second) as two:
                        await link(two, first.join_endpoint)
                    await heard(one, PeerUp)
                await heard(one, PeerDown)

    with running_hub(A) as first:
        run(test(first))


def test_who_was_let_in_is_remembered_over_a_restart() -> None:
    with running_hub(A) as hub:
        assert isinstance(knock_at(hub, KEYS[B]), JoinAccept)
        assert read_members(hub.run_dir, "home", strict=False).require(B).key == KEYS[B].public.hex()
        assert not read_members(hub.run_dir, "other", strict=False).by_id


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.OBSERVER])
def test_a_role_comes_with_its_code_and_opens_no_gate_of_its_own(role: Role) -> None:
    async def test(first: RunningHub, second: RunningHub) -> None:
        async with on(first) as one, on(second) as two:
            assert second.join_endpoint == ""
            await link(two, first.join_endpoint)
            assert (await heard(one, PeerUp))[0].role is role

    with running_hub(A) as first, running_hub(B, role=role) as second:
        run(test(first, second))


def test_a_rotated_code_reaches_who_is_linked_and_shuts_the_old_one_out() -> None:
    async def test(first: RunningHub, second: RunningHub, watcher: RunningHub) -> None:
        async with on(first) as one, on(second) as two, on(watcher) as three:
            await link(one, second.join_endpoint)
            await link(three, first.join_endpoint)
            told = await one.request("hub", ClusterRotate(), ClusterRotated, 5.0)
            assert told.told == tuple(sorted((f"name of {B}", f"name of {C}")))
            for bus in (one, two, three):
                await heard(bus, ClusterChanged)
            codes = [code_in(hub) for hub in (first, second, watcher)]
            assert codes[0] == codes[1] != code_of("home").text()
            assert parse_join_code(codes[0]).invite(Role.OBSERVER).text() == codes[2]
            assert await asyncio.to_thread(knock_at, first, new_key_pair()) is None
            for hub in (first, second):
                welcome = await asyncio.to_thread(knock_at, hub, new_key_pair(), parse_join_code(codes[0]))
                assert isinstance(welcome, JoinAccept)
            assert len((await described(one, lambda _: True)).peers) == 2  # links do not depend on the code

    with running_hub(A) as first, running_hub(B) as second, running_hub(C, role=Role.OBSERVER) as watcher:
        run(test(first, second, watcher))


def test_an_observer_cannot_rotate() -> None:
    async def test(hub: RunningHub) -> None:
        async with on(hub) as one:
            with pytest.raises(RequestError, match="only a member can rotate"):
                await one.request("hub", ClusterRotate(), ClusterRotated, 5.0)

    with running_hub(A, role=Role.OBSERVER) as hub:
        run(test(hub))


def test_a_gate_takes_ten_knocks_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outside, "KNOCKS_A_SECOND", 2)
    with running_hub(A) as hub:
        answers = [knock_at(hub, new_key_pair()) for _ in range(6)]
    busy = [answer for answer in answers if isinstance(answer, RequestFailed)]
    assert [answer.code for answer in busy] == ["busy"] * len(busy)
    assert len(busy) >= 1


def test_what_is_no_knock_is_counted_at_the_gate() -> None:
    async def test(hub: RunningHub) -> None:
        async with on(hub) as one:
            join_endpoint = key_pair_of(code_of("home").keys().join_secret).public
            with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
                connect(dealer, with_key(hub.join_endpoint, join_endpoint), new_key_pair())
                dealer.send_multipart([b"junk"])
                dealer.send_multipart(encode("/hub", new_header(HubDescribe(), f"{B}/hub"), HubDescribe()))
                state = await described(
                    one, lambda s: {"dropped: frames", "dropped: at the join port"} <= s.counters.keys()
                )
            assert state.peers == ()

    with running_hub(A) as hub:
        run(test(hub))


def test_a_node_that_stands_alone_listens_nowhere_and_says_how_to_change_that() -> None:
    async def test(hub: RunningHub) -> None:
        async with on(hub) as one:
            state = await one.request("hub", HubDescribe(), HubState, 5.0)
            assert (state.endpoint, state.join_endpoint, state.cluster) == ("", "", "")
            for work in (PeerDial("tcp://127.0.0.1:1"), MembersGet(), ClusterRotate()):
                with pytest.raises(
                    RequestError, match=r"this node stands alone; make a cluster with `exobus cluster in"
                ):
                    await one.request("hub", work, RequestDone, 5.0)

    with running_hub("a" * 16) as hub:
        run(test(hub))


def code_in(hub: RunningHub) -> str:
    return read_private(hub.run_dir / "join-code")


def test_what_a_role_may_not_send_is_refused_with_a_sentence_and_its_facts_are_not_heard() -> None:
    async def test(home: RunningHub, watcher: RunningHub) -> None:
        async with on(home) as host, on(home, "node") as node, on(watcher) as guest:
            await link(guest, home.join_endpoint)
            host.subscribe("log")
            host.subscribe("status")
            await described(guest, lambda state: {"log", "status"} <= set(state.subscriptions), f"{A}/hub")
            with pytest.raises(RequestError, match=r"the role observer may not send instance\.ensure") as refused:
                await guest.request(f"{A}/node", InstanceEnsure("tiny"), RequestDone, 5.0)
            assert refused.value.code == "forbidden"
            await guest.publish(Log("WARNING", "x", "from an observer"))
            answering = asyncio.create_task(answer(node))
            await guest.request(f"{A}/node", LinkProbe(), RequestDone, 5.0)
            await answering
            await host.publish(Status("m", "own"))
            assert isinstance((await heard(host, (Log, Status)))[0], Status)

    with running_hub(A) as home, running_hub(B, role=Role.OBSERVER) as watcher:
        run(test(home, watcher))


async def answer(bus: BusClient) -> None:
    """Answer the next probe."""
    _, envelope = await heard(bus, LinkProbe)
    await bus.send(envelope.header.sender, RequestDone(), cause=envelope.header.id)


def test_a_message_that_comes_twice_counts_once() -> None:
    async def test(hub: RunningHub) -> None:
        async with on(hub) as one, on(hub, "worker") as worker:
            worker.subscribe("status")
            with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
                connect(dealer, hub.endpoint, KEYS[B])
                for message, to in ((LinkProbe(), f"{A}/worker"), (Status("m", "t"), "status")):
                    frames = encode(to, new_header(message, f"{B}/node", sequence=7, life=3), message)
                    for again in (
                        frames,
                        frames,
                        encode(to, new_header(message, f"{B}/node", sequence=6, life=3), message),
                    ):
                        dealer.send_multipart(again)
                    dealer.send_multipart(encode(to, new_header(message, f"{B}/node", sequence=1, life=2), message))
                await described(one, lambda state: state.counters.get("dropped: replayed") == 6)
                assert (await heard(worker, LinkProbe))[1].header.sequence == 7
                with pytest.raises(TimeoutError):
                    await heard(worker, LinkProbe, within_s=0.2)

    with running_hub(A, knows=(B,)) as hub:
        run(test(hub))
