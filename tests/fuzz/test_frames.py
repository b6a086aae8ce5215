"""A million damaged inputs to the decoders of received bytes: no unexpected exception, and memory does not grow."""

from __future__ import annotations

import gc
from collections import Counter
from itertools import islice

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import convert, inspect

from bus.messages import MESSAGES
from bus.wire import decode, encode, new_header
from tests.fuzz.mutations import damaged
from tests.fuzz.samples import MESSAGE_FRAMES
from tests.fuzz.targets import ADDRESS, TAKEN, TARGETS, message
from tests.support.network.messages import any_value

MAX_GROWTH = 0.05
SHARES = {
    "wire": 250_000,
    "body": 250_000,
    "frame": 200_000,
    "opening": 50_000,
    "failure": 50_000,
    "store": 50_000,
    "cache-report": 50_000,
    "unknown": 50_000,
    "beacon": 50_000,
    "beacon-body": 50_000,
    "join-code": 50_000,
    "endpoint": 50_000,
}
MILLION = 1_000_000


def resident() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def test_shares_add_up_to_a_million() -> None:
    assert sum(SHARES[name] for name in TARGETS) >= MILLION


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_are_accepted(name: str) -> None:
    assert {TARGETS[name].run(seed) for seed in TARGETS[name].seeds} == {TAKEN}


@pytest.mark.parametrize("name", TARGETS)
def test_damaged_inputs_do_not_grow_memory(name: str) -> None:
    target, inputs = TARGETS[name], damaged(TARGETS[name].seeds, seed=20_260)
    count = SHARES[name]
    ends = Counter(target.run(data) for data in islice(inputs, count // 5))
    before = resident()
    ends.update(target.run(data) for data in islice(inputs, count - count // 5))
    grown = resident() / before - 1
    assert ends.total() == count
    assert 0 < ends[TAKEN] < count, "the damage is too great or too small to show anything"
    assert grown < MAX_GROWTH, f"memory grew by {grown:.1%}"


def test_any_number_of_frames_is_handled() -> None:
    parts = [part for frames in MESSAGE_FRAMES for part in frames] + [ADDRESS, b"", b"\xff" * 300, b"\0" * 2000]
    inputs = damaged(parts, seed=1)
    ends = Counter(message(list(islice(inputs, number % 5))) for number in range(50_000))
    assert {"frames", "size", "header", "address"} <= ends.keys()


@settings(max_examples=2000)
@given(st.data(), st.sampled_from(sorted(MESSAGES)))
def test_message_within_bounds_survives_encoding(data: st.DataObject, kind: str) -> None:
    cls = MESSAGES[kind]
    value = convert(data.draw(any_value(inspect.type_info(cls), longest=300)), cls)
    header = new_header(value, "node/actor", sequence=data.draw(st.integers(0, 2**63 - 1)))
    envelope = decode(encode("node-b/actor", header, value))
    assert (envelope.message, envelope.header) == (value, header)


@settings(max_examples=1000)
@given(st.data(), st.sampled_from(sorted(TARGETS)))
def test_any_bytes_are_accepted_or_refused(data: st.DataObject, name: str) -> None:
    seeds = TARGETS[name].seeds
    pieces = st.one_of(
        st.binary(max_size=64), st.sampled_from(seeds), st.sampled_from(seeds).map(lambda seed: seed[:20])
    )
    TARGETS[name].run(b"".join(data.draw(st.lists(pieces, max_size=3))))
