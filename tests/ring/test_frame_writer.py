"""`ring.frame_writer`: the bound of a failure that a stage sends."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.failures import FailureCode
from cluster.openings import MAX_FAILURE, SessionFailure
from ring import coordinator
from tests.support.ring.stage_ring import stage_ring


def test_failure_message_is_cut_to_its_bound(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(coordinator, "REPLACED", SessionFailure(FailureCode.REPLACED, "x" * 100_000))
    with stage_ring(weights, 1) as ring:
        ring.stages[0].drain().result()
        ring.gateway.open(1)
        assert len(ring.failure(1)) == MAX_FAILURE
