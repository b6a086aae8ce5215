"""`bus.peering.peering`: the ports of each role, and of a standalone node."""

from __future__ import annotations

import pytest

from bus.client import RequestError
from bus.messages import (
    ClusterRotate,
    HubDescribe,
    HubState,
    MembersGet,
    PeerDial,
    PeerDown,
    PeerDrop,
    PeerUp,
    RequestDone,
    Status,
)
from cluster.roles import Role
from tests.support.bus import RunningHub, described, in_time, link, new_node, next_message, run, running_hub
from tests.support.network.joining import client_of

A, B = new_node(), new_node()


@pytest.mark.parametrize("role", [Role.GATEWAY, Role.OBSERVER])
def test_only_a_member_has_a_join_port(role: Role) -> None:
    async def test(first: RunningHub, second: RunningHub) -> None:
        async with client_of(first) as one, client_of(second) as two:
            assert second.join_endpoint == ""
            await link(two, first.join_endpoint)
            assert (await next_message(one, PeerUp))[0].role is role

    with running_hub(A) as first, running_hub(B, role=role) as second:
        run(test(first, second))


def test_standalone_node_has_no_ports() -> None:
    async def test(hub: RunningHub) -> None:
        async with client_of(hub) as one:
            state = await one.request("hub", HubDescribe(), HubState, 5.0)
            assert (state.endpoint, state.join_endpoint, state.cluster) == ("", "", "")
            for work in (PeerDial("tcp://127.0.0.1:1"), MembersGet(), ClusterRotate()):
                with pytest.raises(
                    RequestError, match=r"this node stands alone; make a cluster with `exobus cluster in"
                ):
                    await one.request("hub", work, RequestDone, 5.0)

    with running_hub("a" * 16) as hub:
        run(test(hub))


def test_link_broken_on_one_side_goes_down_on_both() -> None:
    async def test(first: RunningHub, second: RunningHub) -> None:
        async with client_of(first) as one, client_of(second) as two, client_of(second, "worker") as worker:
            worker.subscribe("status")
            await link(one, second.join_endpoint)
            up, _ = await next_message(one, PeerUp)
            await next_message(two, PeerUp)
            await one.request("hub", PeerDrop(up.endpoint), RequestDone, 5.0)
            assert (await next_message(two, PeerDown))[0].node_id == A
            assert (await next_message(two, PeerUp))[0].node_id == A
            await next_message(one, PeerUp)
            await described(one, lambda state: "status" in state.subscriptions, f"{B}/hub")
            assert in_time(lambda: one.has_subscribers(Status))
            await one.publish(Status("m", "over the new connection"))
            assert (await next_message(worker, Status))[0].text == "over the new connection"
            with pytest.raises(TimeoutError):
                await next_message(two, PeerDown, within_s=0.5)

    with running_hub(A) as first, running_hub(B) as second:
        run(test(first, second))
