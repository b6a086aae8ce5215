"""`ring.roles`: the parts of a stage at each place of a ring."""

from __future__ import annotations

from pathlib import Path

import pytest

from ring.coordinator import RingCoordinator
from ring.relay import Follower, Forwarder
from ring.token_sampler import LoneTokenSampler, TokenSampler
from tests.support.ring.stage_ring import stage_ring


@pytest.mark.parametrize(
    ("count", "inputs", "outputs"),
    [
        (1, [RingCoordinator], [LoneTokenSampler]),
        (2, [RingCoordinator, Follower], [Forwarder, TokenSampler]),
        (3, [RingCoordinator, Follower, Follower], [Forwarder, Forwarder, TokenSampler]),
    ],
)
def test_roles_follow_from_the_place_in_the_ring(
    weights: Path, count: int, inputs: list[type], outputs: list[type]
) -> None:
    with stage_ring(weights, count) as ring:
        assert [type(thread.stage.input) for thread in ring.stages] == inputs
        assert [type(thread.stage.output) for thread in ring.stages] == outputs
