"""Choosing the engine of a model is a pure function of what was measured."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from cluster.capabilities import EngineCapability
from engines.choice import FAR_SLOWER, LEAN, MARGIN, REFERENCE, ModelSpeed, candidates, choose, with_room
from engines.settings import ENGINES

MS = st.floats(0.01, 1000)
NAMES = st.sampled_from(ENGINES)
MEASURED = st.builds(EngineCapability, NAMES, ms_per_layer=st.none() | MS)
TIMED = st.builds(ModelSpeed, NAMES, decode_ms=MS, prompt_ms=MS)
FAILED = st.builds(ModelSpeed, NAMES, detail=st.just("it cannot"))
SPEEDS = st.lists(TIMED | FAILED, max_size=5, unique_by=lambda speed: speed.name)


@given(st.lists(MEASURED, max_size=5, unique_by=lambda engine: engine.name), NAMES)
def test_slow_engines_are_not_compared(engines: list[EngineCapability], own: str) -> None:
    timed = {engine.name: engine.ms_per_layer for engine in engines if engine.ms_per_layer is not None}
    found = candidates(engines, own)
    limit = FAR_SLOWER * min(timed.values(), default=0)
    assert set(found) == {name for name, ms in timed.items() if (ms <= limit and name != REFERENCE) or name == own}
    assert found == sorted(found, key=lambda name: (timed[name], name))


@given(SPEEDS, NAMES, st.sets(NAMES, max_size=2))
def test_no_engine_is_much_faster_than_the_chosen(speeds: list[ModelSpeed], own: str, refusing: set[str]) -> None:
    refused = dict.fromkeys(refusing, "it cannot be cut there")
    able = {speed.name: speed.token_ms for speed in speeds if speed.token_ms and speed.name not in refused}
    engine, why = choose(speeds, own, refused)
    if able:
        tied = {name for name, ms in able.items() if ms <= min(able.values()) * MARGIN}
        assert engine in tied
        assert engine == LEAN or LEAN not in tied
        assert engine in (own, LEAN) or own not in tied
    else:
        assert engine == own
    assert all(f"{name}: it cannot be cut there" in why for name in refused)


def test_machines_own_engine_wins_a_near_tie() -> None:
    speeds = [ModelSpeed("mlx", 10.0, 2.0), ModelSpeed("onnx", 10.2, 2.1)]
    assert [choose(speeds, own, {}).engine for own in ("onnx", "mlx")] == ["onnx", "mlx"]


def test_engine_that_copies_no_weights_wins_any_near_tie() -> None:
    speeds = [ModelSpeed("onnx", 10.0, 2.0), ModelSpeed(LEAN, 10.2, 2.1), ModelSpeed("mlx", 10.1, 2.0)]
    assert {choose(speeds, own, {}).engine for own in ("onnx", LEAN, "mlx")} == {LEAN}


def test_reason_has_all_times_and_refusals() -> None:
    speeds = [ModelSpeed("onnx", 91.23, 18.4), ModelSpeed("numpy", detail="took longer than 20 s")]
    assert choose(speeds, "onnx", {"llamacpp": "it has to run whole"}).why == (
        "a written and a read token of this model take: onnx 91.2 and 18.40 ms; numpy: took longer than 20 s;"
        " llamacpp: it has to run whole"
    )


def test_read_token_counts_as_much_as_a_written_one() -> None:
    slow_reader, slow_writer = ModelSpeed("onnx", 10.0, 9.0), ModelSpeed("mlx", 11.0, 5.0)
    assert choose([slow_reader, slow_writer], "onnx", {}).engine == "mlx"


@given(
    st.lists(MEASURED, max_size=5, unique_by=lambda engine: engine.name),
    NAMES,
    st.dictionaries(NAMES, st.integers(0, 100)),
    st.integers(0, 100),
)
def test_engines_without_room_are_left_out(
    engines: list[EngineCapability], own: str, others: dict[str, int], free: int
) -> None:
    need = {own: 50, **others}
    engine, left = with_room(engines, own, need, free)
    if any(weights <= free for weights in need.values()):
        assert need[engine] <= free
        assert engine == own or need[own] > free
        assert {one.name for one in left} == {one.name for one in engines if need.get(one.name, 0) <= free}
    else:
        assert (engine, left) == (own, tuple(engines)), "loading says what is missing"
