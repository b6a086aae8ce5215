"""Sequence numbers: new and repeated messages, and the bounds of what both sides remember."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.messages import Header, LinkProbe, Status
from bus.sequencing import MAX_STREAMS, ReplayFilter, Sequencer

A, B = "a" * 16, "b" * 16


def header(sequence: int, life: int = 1, sender: str = f"{A}/node") -> Header:
    return Header(1, "status", "id", sender, sequence, life=life)


def accepted(*headers: Header, to: str = "status") -> list[bool]:
    replays = ReplayFilter()
    return [replays.accept(each, to) for each in headers]


def test_each_destination_is_numbered_from_one() -> None:
    sequencer = Sequencer(f"{A}/node", 7)
    headers = [sequencer.header(Status("m", "text"), to) for to in ("status", "status", f"{B}/node", "status")]
    assert [h.sequence for h in headers] == [1, 2, 1, 3]
    assert {(h.sender, h.life) for h in headers} == {(f"{A}/node", 7)}


def test_header_names_its_cause() -> None:
    assert Sequencer(f"{A}/node").header(LinkProbe(), f"{B}/node", "work").cause == "work"


def test_later_process_has_a_higher_life() -> None:
    lives = [Sequencer(f"{A}/node").header(LinkProbe(), "x/y").life for _ in range(3)]
    assert lives == sorted(set(lives))


def test_repeated_message_is_refused() -> None:
    assert accepted(header(1), header(2), header(2), header(1), header(3)) == [True, True, False, False, True]


def test_gap_does_not_block_later_messages() -> None:
    assert accepted(header(1), header(5)) == [True, True]


def test_message_without_number_is_refused() -> None:
    assert accepted(header(0), header(0, life=0), header(-1)) == [False, False, False]


def test_restarted_sender_starts_at_one() -> None:
    assert accepted(header(9), header(1, life=2), header(10), header(2, life=2)) == [True, True, False, True]


def test_each_sender_and_destination_is_a_stream() -> None:
    replays = ReplayFilter()
    assert replays.accept(header(3), "status")
    assert replays.accept(header(1), "log")
    assert replays.accept(header(1, sender=f"{A}/gateway"), "status")
    assert not replays.accept(header(3), "status")


def test_forgotten_node_starts_again() -> None:
    replays = ReplayFilter()
    assert replays.accept(header(5, life=9), "status")
    assert replays.accept(header(5, life=9, sender=f"{B}/node"), "status")
    replays.forget(A)
    assert replays.accept(header(1, life=2), "status")
    assert not replays.accept(header(5, life=9, sender=f"{B}/node"), "status")


def test_number_of_streams_is_bounded() -> None:
    replays = ReplayFilter()
    assert all(replays.accept(header(1, sender=f"{A}/{number}"), "status") for number in range(3 * MAX_STREAMS))
    assert len(replays._last) == MAX_STREAMS


def test_busy_stream_survives_many_others() -> None:
    replays = ReplayFilter()
    for number in range(1, 3 * MAX_STREAMS):
        assert replays.accept(header(number), "status")
        assert replays.accept(header(1, sender=f"{A}/{number}"), "status")
    assert not replays.accept(header(1), "status")


def test_evicted_stream_continues_with_higher_numbers() -> None:
    sequencer, replays = Sequencer(f"{A}/node", 1), ReplayFilter()
    for _ in range(3):
        assert replays.accept(sequencer.header(LinkProbe(), "b/x"), "b/x")
    for number in range(MAX_STREAMS):
        sequencer.header(LinkProbe(), f"c/{number}")
    assert len(sequencer._last) == MAX_STREAMS
    assert replays.accept(sequencer.header(LinkProbe(), "b/x"), "b/x")


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), max_size=40))
def test_accepted_numbers_only_rise(numbers: list[tuple[int, int]]) -> None:
    replays = ReplayFilter()
    taken = [(life, sequence) for life, sequence in numbers if replays.accept(header(sequence, life), "status")]
    assert taken == sorted(set(taken))
    assert (max(numbers) in taken) if numbers else not taken


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_filter_accepts_what_a_sequencer_numbers(destinations: list[str]) -> None:
    sequencer, replays = Sequencer(f"{A}/node", 1), ReplayFilter()
    headers = [(sequencer.header(LinkProbe(), to), to) for to in destinations]
    assert all(replays.accept(*each) for each in headers)
    assert not any(replays.accept(*each) for each in headers)
