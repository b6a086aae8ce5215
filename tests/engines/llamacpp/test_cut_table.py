"""Models are cut only where the sweep has shown that it changes no number."""

from __future__ import annotations

import pytest

from cluster.shard import Shard
from engines.errors import EngineError
from engines.llamacpp.cut_table import CutRule, cut_rule, windowed_layers


def test_unknown_architecture_is_not_cut() -> None:
    with pytest.raises(EngineError, match=r"'bloom' models are not known .* run this one whole on one node"):
        cut_rule("bloom", Shard("m", 0, 2, 4))


@pytest.mark.parametrize(("start", "end"), [(0, 4), (4, 8), (8, 10), (0, 8)])
def test_parts_begin_at_the_multiples_of_the_rule(start: int, end: int) -> None:
    assert cut_rule("smollm3", Shard("m", start, end, 10)).multiple == 4


@pytest.mark.parametrize(("start", "end"), [(0, 3), (3, 10), (5, 8), (4, 9)])
def test_other_cuts_are_refused_with_the_layer(start: int, end: int) -> None:
    with pytest.raises(EngineError, match=r"every 4th layer only, not at [359]"):
        cut_rule("smollm3", Shard("m", start, end, 10))


@pytest.mark.parametrize("shard", [Shard("m", 0, 30, 62), Shard("m", 30, 62, 62), Shard("m", 0, 62, 70)])
def test_model_that_is_computed_by_its_size_is_not_cut(shard: Shard) -> None:
    assert cut_rule("gemma3", Shard("m", 0, 30, 48)).window_period == 6
    with pytest.raises(EngineError, match="'gemma3' models of 62 layers in another way than their parts; run this one"):
        cut_rule("gemma3", shard)


def test_windows_follow_the_period_of_the_whole_model() -> None:
    assert windowed_layers(CutRule(window_period=3), None, Shard("m", 1, 5, 9)) == [True, False, True, True]
    assert windowed_layers(CutRule(window_period=3), 2, Shard("m", 1, 5, 9)) == [False, True, False, True]
    assert windowed_layers(CutRule(), None, Shard("m", 1, 5, 9)) is None


def test_listed_windows_take_precedence_over_the_period() -> None:
    assert windowed_layers(CutRule(window_period=3), [True, True, False, True], Shard("m", 2, 4, 4)) == [False, True]


def test_part_without_a_window_is_refused() -> None:
    with pytest.raises(EngineError, match=r"m\[5:6\] has no layer with a window"):
        windowed_layers(CutRule(window_period=2), None, Shard("m", 5, 6, 6))
