"""What a ring remembers and whom it lets in: queue, prefix cache and drafts, on stages over the real data plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bus.dataplane import transport as data_plane
from cluster.sampling import SamplingParams
from ring import ring_memory, stage
from ring.coordinator import RingCoordinator
from ring.prefix_cache import BLOCK
from tests.ring.test_stage import CUTS, GREEDY, N_LAYERS, PROMPT, SAMPLED, Rig, reference, rig, weights
from tests.support import engines as rig_engines
from tests.support.bus import in_time
from tests.support.models import TINY_VOCAB

__all__ = ["N_LAYERS", "reference", "weights"]  # fixtures


def text(length: int, seed: int = 1) -> list[int]:
    return [int(token) for token in np.random.default_rng(seed).integers(3, TINY_VOCAB, length)]


def cached(ring: Rig, session: int) -> int:
    """The prompt tokens that the ring said to know already, when it let the session in."""
    ahead, known = ring.gateway.sessions[session].places[-1]
    assert ahead == 0
    return known


def rows(ring: Rig) -> list[int]:
    return [stage.counts.rows for stage in ring.stages]


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("drafts", [0, 8])
def test_a_second_turn_computes_only_what_is_new(
    weights: Path, reference: rig_engines.Ring, count: int, drafts: int
) -> None:
    first, question = text(3 * BLOCK + 7), text(9, seed=2)
    with rig(weights, count) as ring:
        answer = ring.generate(1, first, 2 * BLOCK, GREEDY, drafts)
        assert cached(ring, 1) == 0
        second = [*first, *answer, *question]
        assert ring.generate(2, second, 8, GREEDY) == reference.generate(second, 8).tokens
        assert cached(ring, 2) == (len(first) + len(answer) - 1) // BLOCK * BLOCK
        assert ring.all_closed()
        assert all(stage.counts.reused_rows == cached(ring, 2) for stage in ring.stages)
        assert not any(stage.dropped for stage in ring.stages)


@pytest.mark.parametrize("count", [1, 3])
def test_a_beginning_that_many_share_is_stored_once(weights: Path, reference: rig_engines.Ring, count: int) -> None:
    system = text(4 * BLOCK)
    with rig(weights, count) as ring:
        for session in range(5):
            prompt = [*system, *text(6, seed=10 + session)]
            assert ring.generate(session, prompt, 4, SAMPLED) == reference.generate(prompt, 4, SAMPLED).tokens
        assert [cached(ring, session) for session in range(5)] == [0, *[len(system)] * 4]
        assert ring.all_closed()
        assert [stage.counts.stored_positions for stage in ring.stages] == [len(system)] * count


def test_a_prompt_is_known_to_others_as_soon_as_its_first_token_is_out(weights: Path) -> None:
    system = text(2 * BLOCK)
    with rig(weights, 2) as ring:
        ring.gateway.open(1, system, max_tokens=300)
        ring.gateway.hear(1, tokens=3)
        ring.generate(2, [*system, 5], 2, GREEDY)
        assert cached(ring, 2) == len(system)
        ring.gateway.close(1)
        assert ring.all_closed()


def test_what_a_session_may_need_is_freed_from_the_stored_beginnings_first(
    weights: Path, reference: rig_engines.Ring
) -> None:
    with rig(weights, 2, positions=300) as ring:
        for session in range(3):
            ring.generate(session, text(BLOCK * 2, seed=session), 4, GREEDY)
        assert ring.stages[1].counts.stored_positions == 6 * BLOCK
        prompt = text(200, seed=50)
        assert ring.generate(9, prompt, 40, GREEDY) == reference.generate(prompt, 40).tokens
        for stage in ring.stages:
            assert stage.counts.stored_positions <= 300


@pytest.mark.parametrize("count", [1, 2])
def test_sessions_beyond_the_memory_wait_their_turn_and_are_told_their_place(
    weights: Path, reference: rig_engines.Ring, count: int
) -> None:
    with rig(weights, count, positions=64) as ring:
        for session in range(5):
            ring.gateway.open(session, PROMPT, max_tokens=50)
        ring.gateway.hear(0)
        assert [len(ring.gateway.sessions[session].log.tokens) for session in range(1, 5)] == [0] * 4
        for session in range(5):
            ring.gateway.hear(session)
            ring.gateway.close(session)
        expected = reference.generate(PROMPT, 50).tokens
        for session, heard in ring.gateway.sessions.items():
            assert heard.log.tokens == expected
            assert [ahead for ahead, _ in heard.places] == list(range(session, -1, -1))
        assert ring.all_closed()


def test_a_session_that_leaves_the_queue_makes_room_in_it(weights: Path) -> None:
    with rig(weights, 2, positions=64) as ring:
        for session in range(3):
            ring.gateway.open(session, PROMPT, max_tokens=50)
        ring.gateway.hear(0, tokens=1)
        ring.gateway.close(1)
        ring.gateway.close(0)
        ring.gateway.hear(2)
        assert ring.gateway.sessions[1].log.tokens == []
        assert [stage.counts.waiting for stage in ring.stages] == [0, 0]


def test_who_waits_for_a_gateway_that_is_gone_leaves_the_queue(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_memory, "REPORT_EVERY_S", 0.05)
    monkeypatch.setattr(stage, "IDLE_WAIT_MS", 20)
    monkeypatch.setattr(data_plane, "SEND_WITHIN_MS", 200)
    with rig(weights, 2, positions=64) as ring:
        ring.gateway.open(1, PROMPT, max_tokens=50)
        ring.gateway.hear(1)  # it has ended, and holds its memory until it is closed
        lost = data_plane.Transport(ring.run_dir, "lost")
        for session in (2, 3):
            ring.gateway.open(session, PROMPT, max_tokens=50, reply_to=lost.endpoints)
        assert in_time(lambda: ring.stages[0].counts.waiting == 2)
        lost.close()
        assert in_time(lambda: ring.stages[0].counts.waiting == 0)
        ring.gateway.close(1)
        assert ring.all_closed()


def test_a_full_queue_refuses_with_a_time_to_come_back(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ring_memory, "MOST_WAITING", 2)
    with rig(weights, 1, positions=64) as ring:
        for session in range(4):
            ring.gateway.open(session, PROMPT, max_tokens=50)
        ring.gateway.hear(3)
        failure = ring.gateway.sessions[3].failure
        assert failure is not None
        assert (failure.code, failure.retry_after_s >= 1) == ("queue_full", True)
        for session in range(3):
            ring.gateway.hear(session)
            ring.gateway.close(session)
            assert len(ring.gateway.sessions[session].log.tokens) == 50


def test_a_session_that_could_never_fit_is_refused_in_a_sentence(weights: Path) -> None:
    with rig(weights, 2, positions=64) as ring:
        ring.gateway.open(1, PROMPT, max_tokens=60)
        assert "this ring has memory for 64" in ring.failure(1)
        assert ring.open_sessions() == [0, 0]


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_drafts_change_no_token_and_spare_passes_where_a_text_repeats_itself(
    weights: Path, reference: rig_engines.Ring, count: int, sampling: SamplingParams
) -> None:
    prompt = text(12) * 6
    expected = reference.generate(prompt, 120, sampling).tokens
    with rig(weights, count) as ring:
        assert ring.generate(1, prompt, 120, sampling, drafts=8) == expected
        assert ring.all_closed()
        last = ring.stages[-1].counts
        assert ring.gateway.sessions[1].passes == 120 - last.accepted
        assert 0 < last.accepted <= last.drafted or sampling is SAMPLED
        assert not any(stage.dropped for stage in ring.stages)


def test_two_hundred_greedy_answers_are_the_same_with_drafts_and_without(weights: Path) -> None:
    with rig(weights, 2) as ring:
        for number in range(200):
            prompt = text(9, seed=number) * 3
            plain = ring.generate(2 * number, prompt, 24, GREEDY)
            assert ring.generate(2 * number + 1, prompt, 24, GREEDY, drafts=8) == plain
        last = ring.stages[-1].counts
        assert last.accepted > 200, "drafts were hardly ever right, so nothing was tried"
        assert not any(stage.dropped for stage in ring.stages)


def test_a_stage_that_lost_stored_blocks_fails_one_session_and_the_ring_starts_afresh(
    weights: Path, reference: rig_engines.Ring
) -> None:
    prompt = text(3 * BLOCK + 5)
    with rig(weights, 3) as ring:
        ring.generate(1, prompt, 4, GREEDY)
        assert ring.all_closed()
        coordinator = ring.stages[0].stage.input
        assert isinstance(coordinator, RingCoordinator)
        ring.stages[1].stage.runner.blocks.drop(range(1000))
        ring.gateway.open(2, prompt, max_tokens=4)
        assert "is gone from a stage" in ring.failure(2)
        assert ring.all_closed()
        assert in_time(lambda: bool(coordinator._memory._to_drop))
        for session in (3, 4):
            assert ring.generate(session, prompt, 4, GREEDY) == reference.generate(prompt, 4).tokens
        assert cached(ring, 3) == 0
        assert cached(ring, 4) == 3 * BLOCK
        assert len({frozenset(stage.stage.runner.blocks._blocks) for stage in ring.stages}) == 1
