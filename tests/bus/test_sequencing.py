"""Numbers of messages: what is new, what came before, and that neither side remembers without end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from bus.messages import Header, LinkProbe, Status
from bus.sequencing import MOST_STREAMS, ReplayFilter, Sequencer

A, B = "a" * 16, "b" * 16


def header(sequence: int, life: int = 1, sender: str = f"{A}/node") -> Header:
    return Header(1, "status", "id", sender, sequence, life=life)


def heard(*headers: Header, to: str = "status") -> list[bool]:
    known = ReplayFilter()
    return [known.fresh(each, to) for each in headers]


def test_messages_to_one_place_are_numbered_from_one() -> None:
    numbering = Sequencer(f"{A}/node", 7)
    headers = [numbering.header(Status("m", "text"), to) for to in ("status", "status", f"{B}/node", "status")]
    assert [h.sequence for h in headers] == [1, 2, 1, 3]
    assert {(h.sender, h.life) for h in headers} == {(f"{A}/node", 7)}


def test_a_header_names_its_cause() -> None:
    assert Sequencer(f"{A}/node").header(LinkProbe(), f"{B}/node", "work").cause == "work"


def test_a_later_life_has_a_higher_number() -> None:
    lives = [Sequencer(f"{A}/node").header(LinkProbe(), "x/y").life for _ in range(3)]
    assert lives == sorted(set(lives))


def test_a_message_that_comes_again_is_not_fresh() -> None:
    assert heard(header(1), header(2), header(2), header(1), header(3)) == [True, True, False, False, True]


def test_a_lost_message_does_not_hold_up_the_next() -> None:
    assert heard(header(1), header(5)) == [True, True]


def test_a_message_without_a_number_is_never_fresh() -> None:
    assert heard(header(0), header(0, life=0), header(-1)) == [False, False, False]


def test_a_restarted_sender_begins_at_one_and_its_earlier_life_is_over() -> None:
    assert heard(header(9), header(1, life=2), header(10), header(2, life=2)) == [True, True, False, True]


def test_senders_and_places_have_numbers_of_their_own() -> None:
    known = ReplayFilter()
    assert known.fresh(header(3), "status")
    assert known.fresh(header(1), "log")
    assert known.fresh(header(1, sender=f"{A}/gateway"), "status")
    assert not known.fresh(header(3), "status")


def test_a_node_whose_link_ended_begins_anew() -> None:
    known = ReplayFilter()
    assert known.fresh(header(5, life=9), "status")
    assert known.fresh(header(5, life=9, sender=f"{B}/node"), "status")
    known.forget(A)
    assert known.fresh(header(1, life=2), "status")
    assert not known.fresh(header(5, life=9, sender=f"{B}/node"), "status")


def test_a_flood_of_senders_takes_no_more_memory_than_the_bound() -> None:
    known = ReplayFilter()
    assert all(known.fresh(header(1, sender=f"{A}/{number}"), "status") for number in range(3 * MOST_STREAMS))
    assert len(known._last) == MOST_STREAMS


def test_a_stream_that_is_in_use_is_not_forgotten_for_others() -> None:
    known = ReplayFilter()
    for number in range(1, 3 * MOST_STREAMS):
        assert known.fresh(header(number), "status")
        assert known.fresh(header(1, sender=f"{A}/{number}"), "status")
    assert not known.fresh(header(1), "status")


def test_what_was_numbered_and_forgotten_goes_on_above() -> None:
    numbering, known = Sequencer(f"{A}/node", 1), ReplayFilter()
    for _ in range(3):
        assert known.fresh(numbering.header(LinkProbe(), "b/x"), "b/x")
    for number in range(MOST_STREAMS):
        numbering.header(LinkProbe(), f"c/{number}")
    assert len(numbering._last) == MOST_STREAMS
    assert known.fresh(numbering.header(LinkProbe(), "b/x"), "b/x")


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(1, 9)), max_size=40))
def test_what_is_fresh_rises_and_nothing_is_fresh_twice(numbers: list[tuple[int, int]]) -> None:
    known = ReplayFilter()
    fresh = [(life, sequence) for life, sequence in numbers if known.fresh(header(sequence, life), "status")]
    assert fresh == sorted(set(fresh))
    assert (max(numbers) in fresh) if numbers else not fresh


@given(st.lists(st.sampled_from("abc"), max_size=40))
def test_what_a_sender_numbers_is_fresh_in_the_order_of_sending(places: list[str]) -> None:
    numbering, known = Sequencer(f"{A}/node", 1), ReplayFilter()
    headers = [(numbering.header(LinkProbe(), to), to) for to in places]
    assert all(known.fresh(*each) for each in headers)
    assert not any(known.fresh(*each) for each in headers)
