"""Models are cut only where the sweep has shown that it changes no number."""

from __future__ import annotations

from itertools import combinations

import pytest
from gguf import MODEL_ARCH_NAMES
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.shard import Shard
from engines.errors import NotInParts
from engines.llamacpp.cut_table import ARCHITECTURES, RULES, CutRule, cut_rule, stage_starts, windowed_layers
from models.families import FAMILIES


def test_unknown_architecture_is_not_cut() -> None:
    with pytest.raises(NotInParts, match=r"'bloom' models are not known .* run this one whole on one node"):
        cut_rule("bloom", Shard("m", 0, 2, 4))


@pytest.mark.parametrize(("start", "end"), [(0, 4), (4, 8), (8, 10), (0, 8)])
def test_parts_begin_at_the_multiples_of_the_rule(start: int, end: int) -> None:
    assert cut_rule("smollm3", Shard("m", start, end, 10)).multiple == 4


@pytest.mark.parametrize(("start", "end"), [(0, 3), (3, 10), (5, 8), (4, 9)])
def test_other_cuts_are_refused_with_the_layer(start: int, end: int) -> None:
    with pytest.raises(NotInParts, match=r"every 4th layer only, not at [359]"):
        cut_rule("smollm3", Shard("m", start, end, 10))


@pytest.mark.parametrize("shard", [Shard("m", 0, 30, 62), Shard("m", 30, 62, 62), Shard("m", 0, 62, 70)])
def test_model_that_is_computed_by_its_size_is_not_cut(shard: Shard) -> None:
    assert cut_rule("gemma3", Shard("m", 0, 30, 48)).window_period == 6
    with pytest.raises(NotInParts, match="'gemma3' models of 62 layers in another way than their parts; run this one"):
        cut_rule("gemma3", shard)


def test_windows_follow_the_period_of_the_whole_model() -> None:
    assert windowed_layers(CutRule(window_period=3), None, Shard("m", 1, 5, 9)) == [True, False, True, True]
    assert windowed_layers(CutRule(window_period=3), 2, Shard("m", 1, 5, 9)) == [False, True, False, True]
    assert windowed_layers(CutRule(), None, Shard("m", 1, 5, 9)) is None


def test_listed_windows_take_precedence_over_the_period() -> None:
    assert windowed_layers(CutRule(window_period=3), [True, True, False, True], Shard("m", 2, 4, 4)) == [False, True]


def test_part_without_a_window_is_refused() -> None:
    with pytest.raises(NotInParts, match=r"m\[5:6\] has no layer with a window"):
        windowed_layers(CutRule(window_period=2), None, Shard("m", 5, 6, 6))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(sorted(RULES)), st.integers(1, 70))
def test_parts_between_any_two_starts_are_allowed(architecture: str, n_layers: int) -> None:
    starts = stage_starts(architecture, n_layers)
    assert starts[0] == 0
    for start, end in combinations([*starts, n_layers], 2):
        if (start, end) != (0, n_layers):
            shard = Shard("m", start, end, n_layers)
            windowed_layers(cut_rule(architecture, shard), None, shard)


def test_starts_are_as_many_as_the_rules_allow() -> None:
    assert list(stage_starts("qwen3", 4)) == [0, 1, 2, 3]
    assert list(stage_starts("smollm3", 10)) == [0, 4, 8]
    assert list(stage_starts("gpt-oss", 6)) == [0, 2, 4], "a layer without a window is never alone"
    assert list(stage_starts("gemma3", 62)) == list(stage_starts("gemma2", 26)) == [0]


def test_families_are_found_by_both_their_names() -> None:
    gguf = {family: ARCHITECTURES.get(family, family) for family in FAMILIES}
    assert gguf == {family: MODEL_ARCH_NAMES[known.gguf] for family, known in FAMILIES.items()}
    assert len(stage_starts("qwen3_moe", 8)) == len(stage_starts("qwen3moe", 8)) == 8
