"""Which roles a stage has in its ring. Nothing else asks whether a stage is the first or the last one."""

from __future__ import annotations

from ring.coordinator import RingCoordinator
from ring.loaded_shard import LoadedShard
from ring.relay import Follower, Forwarder
from ring.ring_view import RingView
from ring.stage import Stage
from ring.token_sampler import LoneTokenSampler, TokenSampler


def join_ring(shard: LoadedShard, ring: RingView) -> Stage:
    """Return the stage that a loaded shard is in a ring, connected to the next and the first stage.

    Raises ValueError if an endpoint is malformed or its node is not linked.
    """
    if ring.size == 1:
        return Stage(shard, ring, RingCoordinator, LoneTokenSampler)
    if ring.index == 0:
        return Stage(shard, ring, RingCoordinator, Forwarder)
    return Stage(shard, ring, Follower, TokenSampler if ring.index == ring.size - 1 else Forwarder)
