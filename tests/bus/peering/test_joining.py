"""`bus.peering.joining` and `bus.peering.join_client`: which nodes are admitted, and why others are refused."""

from __future__ import annotations

import asyncio
import signal
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import zmq

from bus.client import RequestError
from bus.messages import (
    HubDescribe,
    HubState,
    InstanceEnsure,
    JoinAccept,
    JoinRequest,
    LinkProbe,
    Log,
    MemberApprove,
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
from bus.net.keys import join_proof, key_pair_of, new_key_pair
from bus.net.sockets import connect, open_socket
from bus.peering import joining
from bus.peering.authenticator import Authenticator
from bus.wire import encode, new_header
from cluster.failures import FailureCode
from cluster.join_code import new_join_code
from cluster.membership import MemberStatus
from cluster.roles import Role
from tests.support.bus import (
    KEYS,
    RunningHub,
    client,
    code_of,
    described,
    hub_config,
    hub_of,
    hub_process,
    link,
    new_node,
    next_message,
    reply_to_probe,
    run,
    run_folder,
    running_hub,
)
from tests.support.network.joining import client_of, dial, members, reply_at_join_port

A, B, C = new_node(), new_node(), new_node()
NULL_GREETING = bytes([0xFF, *bytes(8), 0x7F, 3, 0]) + b"NULL".ljust(52, b"\0")
WRONG_CODE = "a node tried to join cluster home with a wrong join code"


def test_two_holders_of_a_code_link() -> None:
    async def test(first: RunningHub, second: RunningHub) -> None:
        async with client_of(first) as one, client_of(second) as two:
            await link(one, second.join_endpoint)
            assert (await next_message(one, PeerAuthenticated))[0] == PeerAuthenticated(
                second.join_endpoint, B, f"name of {B}"
            )
            up, _ = await next_message(two, PeerUp)
            assert (up.node_id, up.endpoint, up.role) == (A, first.endpoint, Role.MEMBER)
            assert await members(one) == {B: MemberStatus.APPROVED}
            assert await members(two) == {A: MemberStatus.APPROVED}

    with running_hub(A) as first, running_hub(B) as second:
        run(test(first, second))


def test_one_join_port_leads_to_every_member() -> None:
    async def test(first: RunningHub, second: RunningHub, third: RunningHub) -> None:
        async with client_of(first) as one, client_of(second) as two, client_of(third) as three:
            await link(two, first.join_endpoint)
            await link(three, first.join_endpoint)
            for bus in (one, two, three):
                await described(bus, lambda state: len(state.peers) == 2)

    with running_hub(A) as first, running_hub(B) as second, running_hub(C) as third:
        run(test(first, second, third))


def test_wrong_code_is_reported_on_both_sides() -> None:
    async def test(home: RunningHub, guest: RunningHub) -> None:
        async with client_of(home) as host, client_of(guest) as joiner:
            await dial(joiner, home)
            there, _ = await next_message(joiner, PeerRefused, within_s=3.0)
            here, _ = await next_message(host, PeerRefused, within_s=3.0)
            assert (there.endpoint, there.code) == (home.join_endpoint, "wrong_code")
            assert there.message.startswith("wrong join code for cluster home: the join port at")
            assert here == PeerRefused("", FailureCode.WRONG_CODE, WRONG_CODE)
            with pytest.raises(TimeoutError):
                await next_message(host, PeerRefused, within_s=1.0)
            state = await host.request("hub", HubDescribe(), HubState, 5.0)
            assert state.counters["refused at join"] == 1

    with running_hub(A) as home, running_hub(B, code=new_join_code("home")) as guest:
        run(test(home, guest))


def test_join_request_with_wrong_proof_is_refused() -> None:
    pair, keys = new_key_pair(), code_of("home").keys()
    port_key, endpoint = key_pair_of(keys.join_secret).public, with_key("tcp://127.0.0.1:1", new_key_pair().public)
    own = with_key("tcp://127.0.0.1:1", pair.public)
    proof = join_proof(keys.join, Role.MEMBER, pair.public, port_key)
    observer = join_proof(keys.join, Role.OBSERVER, pair.public, port_key)
    with running_hub(A) as hub:
        for request in (
            JoinRequest("guest", Role.MEMBER, 1, own, b""),
            JoinRequest("guest", Role.MEMBER, 1, own, observer),
            JoinRequest("guest", Role.OBSERVER, 1, own, proof),
            JoinRequest("guest", Role.MEMBER, 1, endpoint, proof),
        ):
            reply = reply_at_join_port(hub, pair, request=request)
            assert reply == RequestFailed(FailureCode.WRONG_CODE, "wrong join code for cluster home")
        assert isinstance(reply_at_join_port(hub, pair), JoinAccept)


def test_join_port_without_proof_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder of an observer's code could open a join port with the right key, but has no proof of a member."""

    async def test(hub: RunningHub, impostor: RunningHub) -> None:
        async with client_of(hub) as one:
            await dial(one, impostor)
            refused, _ = await next_message(one, PeerRefused)
            assert "does not belong to cluster home" in refused.message
            assert await members(one) == {}

    with running_hub(A) as hub, run_folder() as folder:
        config = hub_config(folder, B)
        authenticator = Authenticator(config, code_of("home"))
        authenticator.keys = replace(authenticator.keys, join=dict.fromkeys(Role, bytes(32)))
        monkeypatch.setattr(authenticator, "_is_proved", lambda request, key: True)
        monkeypatch.setattr(Authenticator, "of", lambda config: authenticator)
        with hub_of(config) as impostor:
            run(test(hub, impostor))


def test_strict_hub_waits_for_approval() -> None:
    async def test(strict: RunningHub, guest: RunningHub) -> None:
        async with client_of(strict) as host, client_of(guest) as joiner:
            await dial(joiner, strict)
            refused, _ = await next_message(joiner, PeerRefused)
            assert refused.code == "unapproved"
            assert f"exobus cluster approve {B}" in refused.message
            assert (await next_message(host, PeerRefused))[0].code == "unapproved"
            await host.request("hub", MemberApprove(B), RequestDone, 5.0)
            await link(joiner, strict.join_endpoint)

    with running_hub(A, strict=True) as strict, running_hub(B) as guest:
        run(test(strict, guest))


def test_known_name_with_new_key_gives_a_warning() -> None:
    async def test(hub: RunningHub) -> None:
        async with client_of(hub) as one:
            for pair, warning in (
                (KEYS[B], ""),
                (KEYS[C], f"guest joined with a new key ({C}), known before as {B}; "),
            ):
                assert isinstance(await asyncio.to_thread(reply_at_join_port, hub, pair), JoinAccept)
                met, _ = await next_message(one, PeerAuthenticated)
                assert (met.endpoint, met.node_id, met.name) == ("", pair.node_id, "guest")
                assert met.warning.startswith(warning)
                assert bool(met.warning) is bool(warning)

    with running_hub(A) as hub:
        run(test(hub))


def test_copied_key_is_refused() -> None:
    async def test(first: RunningHub, second: RunningHub, copy: RunningHub) -> None:
        async with client_of(first) as one, client_of(second) as two, client_of(copy) as impostor:
            await link(two, first.join_endpoint)
            await next_message(one, PeerUp)
            await dial(impostor, first)
            refused, _ = await next_message(impostor, PeerRefused)
            assert refused.code == "duplicate"
            assert "runs somewhere else with the same key; if its data folder was copied" in refused.message
            await dial(impostor, second)
            assert (await next_message(impostor, PeerRefused))[0].code == "duplicate"
            assert [peer.node_id for peer in (await described(two, lambda _: True)).peers] == [A]
            with pytest.raises(TimeoutError):
                await next_message(one, PeerDown, within_s=0.3)

    with running_hub(A) as first, running_hub(B) as second, running_hub(B, incarnation=2) as copy:
        run(test(first, second, copy))


def test_restarted_node_joins_again() -> None:
    async def test(first: RunningHub) -> None:
        async with client_of(first) as one:
            for life in (1, 2):
                with running_hub(B, incarnation=life) as second:
                    async with client_of(second) as two:
                        await link(two, first.join_endpoint)
                    await next_message(one, PeerUp)
                await next_message(one, PeerDown)

    with running_hub(A) as first:
        run(test(first))


def test_join_requests_are_rate_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(joining, "MAX_REQUESTS_PER_S", 2)
    with running_hub(A) as hub:
        replies = [reply_at_join_port(hub, new_key_pair()) for _ in range(6)]
    busy = [reply for reply in replies if isinstance(reply, RequestFailed)]
    assert [reply.code for reply in busy] == ["busy"] * len(busy)
    assert len(busy) >= 1


def test_other_messages_at_the_join_port_are_counted() -> None:
    async def test(hub: RunningHub) -> None:
        async with client_of(hub) as one:
            port_key = key_pair_of(code_of("home").keys().join_secret).public
            with zmq.Context() as context, open_socket(context, zmq.DEALER) as dealer:
                connect(dealer, with_key(hub.join_endpoint, port_key), new_key_pair())
                dealer.send_multipart([b"junk"])
                dealer.send_multipart(encode("/hub", new_header(HubDescribe(), f"{B}/hub"), HubDescribe()))
                state = await described(
                    one, lambda s: {"dropped: frames", "dropped: no join request"} <= s.counters.keys()
                )
            assert state.peers == ()

    with running_hub(A) as hub:
        run(test(hub))


def test_role_limits_what_a_node_sends() -> None:
    async def test(home: RunningHub, watcher: RunningHub) -> None:
        async with client_of(home) as host, client_of(home, "node") as node, client_of(watcher) as guest:
            await link(guest, home.join_endpoint)
            host.subscribe("log")
            host.subscribe("status")
            await described(guest, lambda state: {"log", "status"} <= set(state.subscriptions), f"{A}/hub")
            with pytest.raises(RequestError, match=r"the role observer may not send instance\.ensure") as refused:
                await guest.request(f"{A}/node", InstanceEnsure("tiny"), RequestDone, 5.0)
            assert refused.value.code == "forbidden"
            await guest.publish(Log("WARNING", "x", "from an observer"))
            replying = asyncio.create_task(reply_to_probe(node))
            await guest.request(f"{A}/node", LinkProbe(), RequestDone, 5.0)
            await replying
            await host.publish(Status("m", "own"))
            assert isinstance((await next_message(host, (Log, Status)))[0], Status)

    with running_hub(A) as home, running_hub(B, role=Role.OBSERVER) as watcher:
        run(test(home, watcher))


def test_repeated_message_is_dropped() -> None:
    async def test(hub: RunningHub) -> None:
        async with client_of(hub) as one, client_of(hub, "worker") as worker:
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
                assert (await next_message(worker, LinkProbe))[1].header.sequence == 7
                with pytest.raises(TimeoutError):
                    await next_message(worker, LinkProbe, within_s=0.2)

    with running_hub(A, knows=(B,)) as hub:
        run(test(hub))


def test_frozen_hub_does_not_respond() -> None:
    async def test(hub: RunningHub, folder: Path) -> None:
        config = hub_config(folder, B)
        with hub_process(config) as frozen:
            async with client_of(hub) as one, client(folder, B, "two") as two:
                endpoint = (await described(two, lambda state: True)).join_endpoint
                frozen.signal(signal.SIGSTOP)
                await one.request("hub", PeerDial(endpoint), RequestDone, 5.0)
                refused, _ = await next_message(one, PeerRefused)
                frozen.signal(signal.SIGCONT)
                assert (refused.endpoint, refused.code) == (endpoint, "silent")
                assert refused.message.startswith(f"the node at {endpoint} does not respond")

    with running_hub(A) as hub, run_folder() as folder:
        run(test(hub, folder))


@pytest.mark.parametrize(
    ("answer", "code", "sentence"),
    [(None, "silent", "does not respond"), (NULL_GREETING, "bad_endpoint", "is no join port of exobus")],
    ids=["breaks", "plain ZeroMQ"],
)
def test_other_listener_is_no_wrong_code(answer: bytes | None, code: str, sentence: str) -> None:
    def listen(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection:
            if answer:
                connection.sendall(answer)
                connection.recv(1024)
            else:  # unread bytes reset the connection, as the end of a process does
                connection.recv(1, socket.MSG_PEEK)

    async def test(hub: RunningHub) -> None:
        async with client_of(hub) as one:
            with socket.create_server(("127.0.0.1", 0)) as server:
                listening = asyncio.create_task(asyncio.to_thread(listen, server))
                endpoint = f"tcp://127.0.0.1:{server.getsockname()[1]}"
                await one.request("hub", PeerDial(endpoint), RequestDone, 5.0)
                refused, _ = await next_message(one, PeerRefused)
                await listening
            assert refused.code == code
            assert sentence in refused.message

    with running_hub(A) as hub:
        run(test(hub))
