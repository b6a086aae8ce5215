"""`cluster.kv_budget`: what a stage gets for keys and values, and what a node remembers of it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.kv_budget import KvBudget, KvRequest

GB = 10**9
WISH = KvRequest(weights=2 * GB, least=GB // 10, most=100 * GB)
sizes = st.integers(0, 100 * GB)


@st.composite
def wishes(draw: st.DrawFn) -> KvRequest:
    least = draw(st.integers(1, GB))
    return KvRequest(draw(sizes), least, draw(st.integers(least, 200 * GB)), draw(st.just(0) | st.integers(1, GB)))


def test_a_stage_gets_half_of_what_its_weights_leave() -> None:
    assert KvBudget().promise("i", "m", WISH, 10 * GB) == 4 * GB


@given(wishes(), sizes)
def test_a_share_lies_between_the_least_and_the_most_and_never_above_the_users_limit(
    wish: KvRequest, offer: int
) -> None:
    share = KvBudget().promise("i", "m", wish, offer)
    assert share <= wish.most
    assert share == wish.limit or share >= wish.least
    assert not wish.limit or share <= wish.limit


@given(wishes(), st.integers(0, 100 * GB))
def test_a_stage_that_was_placed_by_its_need_never_gets_more_than_the_node_has(wish: KvRequest, spare: int) -> None:
    offer = wish.weights + wish.least + spare
    assert wish.weights + KvBudget().promise("i", "m", wish, offer) <= offer


def test_another_model_gets_its_part_of_what_was_not_promised() -> None:
    promises = KvBudget()
    promises.promise("i", "m", WISH, 10 * GB)
    promises.loaded("i")
    free = 8 * GB  # the weights are in memory, and nothing of the keys and values is
    assert promises.promise("j", "other", WISH, free) == (8 - 4 - 2) * GB // 2


def test_weights_that_are_still_being_read_count_too() -> None:
    promises = KvBudget()
    promises.promise("i", "m", WISH, 12 * GB)
    assert promises.promise("j", "other", WISH, 12 * GB) == (12 - 2 - 5 - 2) * GB // 2


def test_a_stage_that_replaces_one_of_its_own_model_gets_as_much() -> None:
    promises = KvBudget()
    promises.promise("i", "m", WISH, 10 * GB)
    promises.loaded("i")
    assert promises.promise("j", "m", WISH, 10 * GB) == 4 * GB


def test_what_a_stage_was_promised_is_free_again_when_it_ends() -> None:
    promises = KvBudget()
    promises.promise("i", "m", WISH, 10 * GB)
    promises.ended("i")
    promises.ended("i")
    promises.loaded("i")
    assert promises.promise("j", "other", WISH, 10 * GB) == 4 * GB


def test_a_node_that_is_full_still_gives_the_least() -> None:
    promises = KvBudget()
    promises.promise("i", "m", WISH, 100 * GB)
    assert promises.promise("j", "other", WISH, 3 * GB) == WISH.least
