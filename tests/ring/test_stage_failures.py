"""`ring.stage`: an exception, whatever it is, ends the session that it concerns, and no other one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bus.dataplane.transport import Transport
from cluster.failures import FailureCode
from cluster.openings import SessionFailure
from cluster.sampling import SamplingParams
from engines import sampler
from engines.numpy.engine import NumpyEngine
from ring import stage as stage_module
from ring import token_sampler
from ring.loaded_shard import LoadedShard
from ring.prefix_cache import BLOCK
from ring.prompt_lookup import PromptLookup
from ring.ring_view import RingView
from ring.stage_thread import join_ring
from tests.support.bus import run_folder
from tests.support.engines import Ring, numpy_engine
from tests.support.ring.stage_ring import CUTS, EPOCH, GREEDY, PROMPT, Gateway, StageRing, random_prompt, stage_ring

VICTIM, OTHER = 1, 2
UNLUCKY = SamplingParams(temperature=0.0, seed=13)
LONG = random_prompt(2 * BLOCK)
"""A prompt that is stored; PROMPT is too short."""


def failing(work: Callable[..., Any], concerns: Callable[..., bool], error: Exception) -> Callable[..., Any]:
    """Return the same work, which raises an error if it concerns the victim."""

    def run(*arguments: Any) -> Any:
        if concerns(*arguments):
            raise error
        return work(*arguments)

    return run


def fail_to_sample(ring: StageRing, patch: pytest.MonkeyPatch) -> None:
    unlucky = failing(sampler.sample, lambda _, params, position: params.seed == UNLUCKY.seed, IndexError("-1"))
    patch.setattr(token_sampler, "sample", unlucky)


def fail_to_draft(ring: StageRing, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PromptLookup, "extend", failing(PromptLookup.extend, lambda *_: True, RuntimeError("no draft")))


def fail_to_save(ring: StageRing, patch: pytest.MonkeyPatch) -> None:
    engine = ring.stages[-1].stage.runner._engine
    patch.setattr(engine, "save", failing(engine.save, lambda *_: True, MemoryError()))


def fail_to_truncate(ring: StageRing, patch: pytest.MonkeyPatch) -> None:
    """Fail before the pass: each decode step of the victim is said to follow a rejected draft."""
    runner = ring.stages[-1].stage.runner
    wanted = runner._logits_wanted
    patch.setattr(runner, "_logits_wanted", failing(wanted, lambda step: step.session.id == VICTIM, KeyError(5)))


FAULTS = [fail_to_sample, fail_to_draft, fail_to_save, fail_to_truncate]


def failure(ring: StageRing, session: int) -> SessionFailure:
    ring.gateway.receive(session)
    found = ring.gateway.sessions[session].failure
    assert found is not None, "the session did not fail"
    return found


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_unknown_exception_fails_its_session_only(
    weights: Path,
    reference: Ring,
    monkeypatch: pytest.MonkeyPatch,
    count: int,
    fault: Callable[[StageRing, pytest.MonkeyPatch], None],
) -> None:
    with stage_ring(weights, count) as ring:
        fault(ring, monkeypatch)
        ring.gateway.open(OTHER, max_tokens=40)
        ring.gateway.receive(OTHER, tokens=2)
        ring.gateway.open(VICTIM, LONG, 40, UNLUCKY, drafts=4)
        failed = failure(ring, VICTIM)
        assert failed.code is FailureCode.INTERNAL
        assert "see its engine's log" in failed.message
        ring.gateway.receive(OTHER)
        assert ring.gateway.sessions[OTHER].log.tokens == reference.generate(PROMPT, 40).tokens
        ring.gateway.close(OTHER)
        assert ring.all_closed()
        monkeypatch.undo()
        assert ring.generate(3, LONG, 4, GREEDY) == reference.generate(LONG, 4).tokens
        assert ring.all_closed()
        assert len({frozenset(stage.stage.runner.blocks._blocks) for stage in ring.stages}) == 1


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("filters", [{"top_p": 0.9}, {"min_p": 0.1}, {"top_k": 5}, {}], ids=str)
def test_temperature_of_almost_zero_disturbs_nobody(
    weights: Path, reference: Ring, count: int, filters: dict[str, Any]
) -> None:
    expected = reference.generate(PROMPT, 24).tokens
    with stage_ring(weights, count) as ring:
        ring.gateway.open(OTHER, max_tokens=24)
        for session, temperature in ((3, 5e-324), (4, 1e-310)):
            ring.gateway.open(session, max_tokens=24, sampling=SamplingParams(temperature=temperature, **filters))
        ring.gateway.receive(OTHER, 3, 4)
        assert [received.log.tokens for received in ring.gateway.sessions.values()] == [expected] * 3


@pytest.mark.parametrize("count", [1, 2])
def test_failed_pass_fails_its_sessions_and_no_later_one(
    weights: Path, reference: Ring, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    with stage_ring(weights, count) as ring:
        engine = ring.stages[-1].stage.runner._engine
        monkeypatch.setattr(engine, "forward", failing(engine.forward, lambda _: True, FloatingPointError("lost")))
        ring.gateway.open(VICTIM)
        assert "FloatingPointError" in failure(ring, VICTIM).message
        monkeypatch.undo()
        assert ring.generate(OTHER, PROMPT, 4, GREEDY) == reference.generate(PROMPT, 4).tokens
        assert ring.all_closed()


def test_engine_that_fails_again_and_again_ends_its_stage(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_module, "IDLE_WAIT_MS", 20)
    with run_folder() as folder:
        engine, transport = numpy_engine(weights), Transport(folder, "stage-0")
        (endpoint,) = transport.endpoints
        stage = join_ring(LoadedShard(engine, EPOCH, transport, 4096), RingView(0, ("n",), endpoint, endpoint, 4096))
        gateway = Gateway(folder, endpoint)
        monkeypatch.setattr(NumpyEngine, "forward", failing(engine.forward, lambda *_: True, MemoryError()))
        try:
            for session in range(stage_module.MAX_FAILED_PASSES - 1):
                gateway.open(session)
                stage.turn()
                gateway.receive(session)
                assert gateway.sessions[session].failure is not None
            gateway.open(99)
            with pytest.raises(RuntimeError, match="in 3 passes in a row"):
                stage.turn()
        finally:
            gateway.transport.close()
            transport.close()
