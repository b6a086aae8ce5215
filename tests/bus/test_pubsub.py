"""`bus.pubsub`: which facts reach which nodes, through real hubs."""

from __future__ import annotations

from bus.messages import ActorUp, Log, Message, PeerUp, Status
from tests.support.bus import RunningHub, clients, described, hubs, link, new_node, next_message, run, subscribed

A, B, C = new_node(), new_node(), new_node()


def test_only_subscribed_facts_reach_another_node() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with (
            clients(pair[:1], "publisher") as [publisher],
            clients(pair[1:], "subscriber", Status) as [subscriber],
        ):
            await link(publisher, pair[1].join_endpoint)
            await subscribed(publisher, f"{B}/hub", "status")
            await publisher.publish(Log("WARNING", "x", "without subscribers"))
            await publisher.publish(Status("m", "first"))
            fact, envelope = await next_message(subscriber, Message)
            while isinstance(fact, PeerUp | ActorUp):
                fact, envelope = await next_message(subscriber, Message)
            assert fact == Status("m", "first")
            assert envelope.node == A

    with hubs(A, B) as pair:
        run(test(pair))


def test_later_subscription_reaches_another_node() -> None:
    async def test(pair: list[RunningHub]) -> None:
        async with clients(pair, "one") as [publisher, subscriber]:
            await link(publisher, pair[1].join_endpoint)
            subscriber.subscribe("status")
            await subscribed(publisher, f"{B}/hub", "status")
            await publisher.publish(Status("m", "later"))
            assert (await next_message(subscriber, Status))[0].text == "later"

    with hubs(A, B) as pair:
        run(test(pair))


def test_facts_about_links_stay_on_their_node() -> None:
    async def test(trio: list[RunningHub]) -> None:
        async with clients(trio, "one", PeerUp, Status) as [first, second, third]:
            await link(first, trio[1].join_endpoint)
            await next_message(second, PeerUp)
            await link(third, trio[0].join_endpoint)  # published on the first node only
            await subscribed(first, f"{B}/hub", "status")
            await first.publish(Status("m", "afterwards"))
            fact, envelope = await next_message(second, (PeerUp, Status))
            while isinstance(fact, PeerUp):  # of its own hub, to which the third node links too
                assert envelope.node == B
                fact, envelope = await next_message(second, (PeerUp, Status))

    with hubs(A, B, C) as trio:
        run(test(trio))


def test_fact_arrives_once_among_three_hubs() -> None:
    async def test(trio: list[RunningHub]) -> None:
        async with clients(trio, "one", Status) as members:
            for member, other in zip(members, (B, C, A), strict=True):
                await link(member, next(hub.join_endpoint for hub in trio if hub.node_id == other))
            for member in members:
                await described(member, lambda state: len(state.peers) == 2)
            for node_id in (A, B, C):
                await subscribed(members[0], f"{node_id}/hub", "status")
            await members[0].publish(Status("m", "first"))
            await members[0].publish(Status("m", "last"))
            for member in members:
                assert [(await next_message(member, Status))[0].text for _ in range(2)] == ["first", "last"]

    with hubs(A, B, C) as trio:
        run(test(trio))
