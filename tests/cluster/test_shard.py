"""`cluster.shard`: ranges of layers, and what lies outside the model."""

from __future__ import annotations

import pytest

from cluster.shard import Shard, whole


@pytest.mark.parametrize(("start", "end"), [(0, 0), (3, 2), (0, 5), (-1, 2), (4, 5)])
def test_empty_or_foreign_range_is_refused(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=r"a shard is a non-empty range inside 0\.\.4"):
        Shard("m", start, end, 4)


def test_ends_of_the_model_are_known() -> None:
    first, middle, last = (Shard("m", at, at + 1, 3) for at in range(3))
    assert [shard.is_first for shard in (first, middle, last)] == [True, False, False]
    assert [shard.is_last for shard in (first, middle, last)] == [False, False, True]
    assert list(middle.layers) == [1]


def test_whole_model_is_first_and_last() -> None:
    shard = whole("m", 3)
    assert (shard.is_first, shard.is_last, list(shard.layers), str(shard)) == (True, True, [0, 1, 2], "m[0:3]")
