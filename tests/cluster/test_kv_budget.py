"""`cluster.kv_budget`: what a stage gets for keys and values, and what stays reserved for it."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.kv_budget import CACHE_PARTS, CacheBound, KvBudget, KvRequest

GB = 10**9
REQUEST = KvRequest(weights=2 * GB, least=GB // 10, most=100 * GB)
sizes = st.integers(0, 100 * GB)


@st.composite
def requests(draw: st.DrawFn) -> KvRequest:
    least = draw(st.integers(1, GB))
    return KvRequest(draw(sizes), least, draw(st.integers(least, 200 * GB)), draw(st.just(0) | st.integers(1, GB)))


def test_stage_gets_half_of_what_its_weights_leave() -> None:
    assert KvBudget().reserve("i", "m", REQUEST, 10 * GB) == 4 * GB


@given(requests(), sizes)
def test_share_is_bounded_by_the_users_limit(request: KvRequest, free: int) -> None:
    share = KvBudget().reserve("i", "m", request, free)
    assert share <= request.most
    assert share == request.limit or share >= request.least
    assert not request.limit or share <= request.limit


@given(requests(), st.integers(0, 100 * GB))
def test_placed_stage_never_exceeds_the_free_memory(request: KvRequest, spare: int) -> None:
    free = request.weights + request.least + spare
    assert request.weights + KvBudget().reserve("i", "m", request, free) <= free


def test_other_model_gets_half_the_unreserved_memory() -> None:
    budget = KvBudget()
    budget.reserve("i", "m", REQUEST, 10 * GB)
    budget.loaded("i")
    free = 8 * GB  # the weights are in memory, and nothing of the keys and values is
    assert budget.reserve("j", "other", REQUEST, free) == (8 - 4 - 2) * GB // 2


def test_all_stages_together_keep_to_the_limit() -> None:
    budget = KvBudget()
    first = budget.reserve("i", "m", REQUEST, 90 * GB, limit=10 * GB)
    budget.loaded("i")
    assert first == 4 * GB
    assert budget.reserved() == budget.reserved_for("i") == 6 * GB
    assert budget.reserve("j", "other", REQUEST, 90 * GB, limit=10 * GB) == (10 - 6 - 2) * GB // 2
    assert budget.reserved("m") == 3 * GB
    assert budget.reserved_for("unknown") == 0


def test_weights_not_yet_loaded_count_as_reserved() -> None:
    budget = KvBudget()
    budget.reserve("i", "m", REQUEST, 12 * GB)
    assert budget.reserve("j", "other", REQUEST, 12 * GB) == (12 - 2 - 5 - 2) * GB // 2


def test_replacement_of_the_same_model_gets_as_much() -> None:
    budget = KvBudget()
    budget.reserve("i", "m", REQUEST, 10 * GB)
    budget.loaded("i")
    assert budget.reserve("j", "m", REQUEST, 10 * GB) == 4 * GB


def test_released_memory_is_free_again() -> None:
    budget = KvBudget()
    budget.reserve("i", "m", REQUEST, 10 * GB)
    budget.release("i")
    budget.release("i")
    budget.loaded("i")
    assert budget.reserve("j", "other", REQUEST, 10 * GB) == 4 * GB


def test_full_node_still_gives_the_minimum() -> None:
    budget = KvBudget()
    budget.reserve("i", "m", REQUEST, 100 * GB)
    assert budget.reserve("j", "other", REQUEST, 3 * GB) == REQUEST.least


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=8))
def test_cache_bound_follows_the_free_memory(measured: list[tuple[int, int]]) -> None:
    bound = CacheBound()
    for free, held in measured:
        bound.follow(free, held)
        allowed = (free + held) // CACHE_PARTS
        assert allowed * 0.79 <= bound.nbytes <= allowed * 1.07


@given(st.integers(GB // 100, 100 * GB), sizes)
def test_cache_that_shrinks_to_its_bound_has_shrunk_enough(free: int, held: int) -> None:
    bound = CacheBound()
    assert bound.follow(free, held)
    kept = min(held, bound.nbytes)
    assert not bound.follow(free + held - kept, kept)
    assert not bound.follow(free + held - kept + GB // 10000, kept), "a small change is none"
