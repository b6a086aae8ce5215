"""`ring.token_sampler`: drafts change no token, and save passes in a text that repeats itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.sampling import SamplingParams
from tests.support.engines import Ring
from tests.support.ring.stage_ring import CUTS, GREEDY, SAMPLED, random_prompt, stage_ring


@pytest.mark.parametrize("count", CUTS)
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_drafts_save_passes_and_change_no_token(
    weights: Path, reference: Ring, count: int, sampling: SamplingParams
) -> None:
    prompt = random_prompt(12) * 6
    expected = reference.generate(prompt, 120, sampling).tokens
    with stage_ring(weights, count) as ring:
        assert ring.generate(1, prompt, 120, sampling, drafts=8) == expected
        assert ring.all_closed()
        last = ring.stages[-1].counts
        assert ring.gateway.sessions[1].passes == 120 - last.accepted
        assert 0 < last.accepted <= last.drafted or sampling is SAMPLED
        assert not any(stage.dropped for stage in ring.stages)


def test_drafts_change_none_of_two_hundred_answers(weights: Path) -> None:
    with stage_ring(weights, 2) as ring:
        for number in range(200):
            prompt = random_prompt(9, seed=number) * 3
            plain = ring.generate(2 * number, prompt, 24, GREEDY)
            assert ring.generate(2 * number + 1, prompt, 24, GREEDY, drafts=8) == plain
        last = ring.stages[-1].counts
        assert last.accepted > 200, "drafts were hardly ever right, so nothing was tried"
        assert not any(stage.dropped for stage in ring.stages)


@pytest.mark.parametrize("drafts", [0, 8])
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_id_without_a_text_is_never_sampled(weights: Path, sampling: SamplingParams, drafts: int) -> None:
    prompt = random_prompt(12) * 3
    with stage_ring(weights, 2) as ring:
        highest = max(ring.generate(1, prompt, 40, sampling, drafts))
        named = ring.generate(2, prompt, 40, sampling, drafts, vocabulary=highest)
    assert len(named) == 40
    assert max(named) < highest
