"""`ring.stage` with each stage on a node of its own: what each of these and any other node may do to a session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bus.dataplane.access import ClusterAccess
from bus.dataplane.frames import GATEWAY_STAGE, Flag, Frame, Payload
from bus.dataplane.transport import Transport
from bus.net.keys import new_key_pair
from cluster.roles import Role
from ring.prefix_cache import CacheUpdate
from tests.support.bus import in_time
from tests.support.engines import Ring
from tests.support.network.dataplane import linked_nodes, new_access, only_tcp, peer, tcp
from tests.support.ring.stage_ring import EPOCH, GREEDY, PROMPT, Gateway, StageRing, stage_ring

STAGES, OWNER, UNKNOWN_NODE = 3, 3, 4
ROW = np.zeros((1, 64), np.float32)
TOKENS = np.array([7], np.int32)
NOTHING = np.empty(0, np.int32)
UPDATE = np.frombuffer(msgspec.msgpack.encode(CacheUpdate(0, (), (1,))), np.uint8)
FORGED: dict[str, tuple[int, Payload]] = {
    "hidden states": (Flag.SAMPLE, ROW),
    "a rollback": (Flag.SAMPLE | Flag.ROLLBACK, ROW),
    "a token": (Flag.TOKEN, TOKENS),
    "a last token": (Flag.TOKEN | Flag.FINISHED, TOKENS),
    "a computed position": (Flag.COMPUTED, NOTHING),
    "a cache update": (Flag.STORE, UPDATE),
    "a close": (Flag.CLOSE, NOTHING),
    "a queue position": (Flag.QUEUE_POSITION, TOKENS),
    "a failure": (Flag.FAILED, TOKENS),
    "two things at once": (Flag.TOKEN | Flag.CLOSE, TOKENS),
}
MAY = {  # (node, stage): what the node may send to the stage; to the first one, an update is a report
    (0, 0): {"a cache update"},
    (1, 0): {"a cache update"},
    (0, 1): {"hidden states", "a rollback", "a cache update", "a close"},
    (1, 2): {"hidden states", "a rollback", "a cache update", "a close"},
    (2, 0): {"a token", "a last token", "a computed position", "a cache update"},
    (OWNER, 0): {"a close"},
}


@contextmanager
def ring_of_nodes(weights: Path, count: int = STAGES) -> Iterator[tuple[StageRing, list[ClusterAccess]]]:
    """Run a ring of so many nodes; yield it with all nodes, the last two being the gateway's and one outside."""
    nodes = linked_nodes(count + 2)
    with stage_ring(weights, count, nodes=nodes[: count + 1]) as ring:
        yield ring, nodes


@contextmanager
def process_of(ring: StageRing, access: ClusterAccess) -> Iterator[Transport]:
    """Run another process of a node, which may send anything."""
    process = Transport(ring.run_dir, "process", access)
    try:
        yield process
    finally:
        process.close()


@pytest.mark.parametrize("count", [1, 2, 3])
def test_ring_of_nodes_gives_the_whole_models_tokens(weights: Path, reference: Ring, count: int) -> None:
    prompt = PROMPT * 20
    with ring_of_nodes(weights, count) as (ring, _):
        assert ring.generate(1, prompt, 24, GREEDY, drafts=4) == reference.generate(prompt, 24).tokens
        assert ring.all_closed()
        assert not any(stage.dropped for stage in ring.stages)


@pytest.mark.parametrize("target", range(STAGES))
@pytest.mark.parametrize("node", range(UNKNOWN_NODE + 1), ids=["first", "second", "last", "owner", "unlinked"])
def test_node_cannot_act_for_another(weights: Path, reference: Ring, node: int, target: int) -> None:
    allowed = MAY.get((node, target), set())
    forged = [(flags, payload) for name, (flags, payload) in FORGED.items() if name not in allowed]
    with ring_of_nodes(weights) as (ring, nodes), process_of(ring, nodes[node]) as process:
        ring.gateway.open(1, max_tokens=400)
        ring.gateway.receive(1, tokens=3)
        for flags, payload in forged:
            process.send(tcp(ring.instance.stages[target].endpoints), forgery(flags, ring), payload)
        assert in_time(lambda: ring.stages[target].dropped.get("wrong sender") == len(forged))
        ring.gateway.receive(1, tokens=40)
        received = ring.gateway.sessions[1].log.tokens
        assert received == reference.generate(PROMPT, len(received)).tokens
        ring.gateway.close(1)
        assert ring.all_closed()


def forgery(flags: int, ring: StageRing) -> Frame:
    position = len(PROMPT) + len(ring.gateway.sessions[1].log.tokens) + 1
    return Frame(flags, EPOCH, 1, position, stage=GATEWAY_STAGE)


@pytest.mark.parametrize("target", [1, 2])
def test_session_opens_at_the_first_stage_only(weights: Path, target: int) -> None:
    with ring_of_nodes(weights) as (ring, nodes):
        gateway = Gateway(ring.run_dir, tcp(ring.instance.stages[target].endpoints), "unlinked", nodes[UNKNOWN_NODE])
        gateway.open(1)
        assert in_time(lambda: ring.stages[target].dropped == {"wrong sender": 1})
        gateway.transport.close()
        assert ring.open_sessions() == [0, 0, 0]


def test_only_the_owner_closes_a_session(weights: Path) -> None:
    nodes = linked_nodes(3)
    with stage_ring(weights, 1, positions=450, nodes=nodes[:2]) as ring, process_of(ring, nodes[2]) as process:
        first = tcp(ring.instance.stages[0].endpoints)
        ring.gateway.open(1, max_tokens=400)
        ring.gateway.open(2, max_tokens=400)
        assert in_time(lambda: ring.stages[0].counts.waiting == 1)
        for session in (1, 2):
            process.send(first, Frame(Flag.CLOSE, EPOCH, session, stage=GATEWAY_STAGE), b"")
        assert in_time(lambda: ring.stages[0].dropped == {"wrong sender": 2})
        assert (ring.stages[0].counts.waiting, ring.open_sessions()) == (1, [1])
        ring.gateway.close(2)
        assert in_time(lambda: ring.stages[0].counts.waiting == 0)


def test_opener_cannot_name_another_nodes_gateway(weights: Path) -> None:
    with ring_of_nodes(weights) as (ring, nodes):
        unlinked = Gateway(ring.run_dir, tcp(ring.instance.stages[0].endpoints), "unlinked", nodes[UNKNOWN_NODE])
        victim = only_tcp(ring.gateway.transport.endpoints)
        for session, reply_to in enumerate(
            (victim, (*victim, tcp(unlinked.transport.endpoints)), ring.gateway.transport.endpoints[:1])
        ):
            unlinked.open(session, reply_to=reply_to)
        assert in_time(lambda: sum(ring.stages[0].dropped.values()) == 3)
        assert ring.stages[0].dropped == {"reply_to": 2, "opening": 1}
        unlinked.transport.close()
        assert ring.gateway.transport.receive(100) is None
        assert ring.open_sessions() == [0, 0, 0]


def test_ipc_endpoint_of_another_node_is_not_used(weights: Path, reference: Ring) -> None:
    with ring_of_nodes(weights) as (ring, nodes), process_of(ring, nodes[0]) as victim:
        own = ring.gateway.transport.endpoints
        ring.gateway.open(1, max_tokens=4, reply_to=(victim.endpoints[0], tcp(own)))
        ring.gateway.receive(1)
        assert ring.gateway.sessions[1].log.tokens == reference.generate(PROMPT, 4).tokens
        assert victim.receive(100) is None


def test_observer_opens_no_session(weights: Path) -> None:
    pairs = new_key_pair(), new_key_pair()
    first = new_access(pairs[0])
    first.allowlist.add([peer(pairs[1], Role.OBSERVER)])
    with stage_ring(weights, 1, nodes=[first, new_access(pairs[1], pairs[0])]) as ring:
        ring.gateway.open(1)
        assert in_time(lambda: ring.stages[0].dropped == {"wrong sender": 1})
        first.allowlist.add([peer(pairs[1], Role.GATEWAY)])
        ring.gateway.open(2, max_tokens=4)
        ring.gateway.receive(2)


def test_unlinked_node_has_no_part_in_a_session(weights: Path, reference: Ring) -> None:
    with ring_of_nodes(weights, 2) as (ring, nodes):
        ring.gateway.open(1, max_tokens=400)
        ring.gateway.receive(1, tokens=2)
        nodes[0].allowlist.remove(nodes[1].pair.node_id)
        assert in_time(lambda: ring.stages[0].dropped == {"not linked": 1})
        ring.gateway.open(2)
        assert "not linked" in ring.failure(2)
        nodes[0].allowlist.add([peer(nodes[1].pair)])
        assert ring.generate(3, PROMPT, 8, GREEDY) == reference.generate(PROMPT, 8).tokens
