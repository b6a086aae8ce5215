"""`gateway.core.stops`: text is cut at the first stop string, however it is split into pieces."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from gateway.core.stops import StopFilter

LETTERS = st.text(alphabet="abc", max_size=30)
STOPS = st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=4)


def filtered(pieces: Sequence[str], stops: Sequence[str]) -> tuple[str, bool]:
    """Return all that a filter shows of the pieces, and whether it stopped."""
    stop_filter = StopFilter(stops)
    shown = "".join(stop_filter.push(piece) for piece in pieces)
    return shown + stop_filter.flush(), stop_filter.stopped


def cut_text(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """Return the same by the definition: the stop that ends first, the longest of several that end there."""
    for end in range(len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))], True
    return text, False


@given(LETTERS, STOPS, st.lists(st.integers(0, 30)))
def test_text_is_cut_however_it_is_split(text: str, stops: list[str], cuts: list[int]) -> None:
    edges = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    pieces = [text[begin:end] for begin, end in pairwise(edges)]
    assert filtered(pieces, stops) == cut_text(text, stops)


@given(LETTERS, STOPS)
def test_no_part_of_a_stop_string_is_shown(text: str, stops: list[str]) -> None:
    stop_filter, shown = StopFilter(stops), ""
    for letter in text:
        shown += stop_filter.push(letter)
        assert cut_text(text, stops)[0].startswith(shown)


def test_split_stop_string_is_never_shown() -> None:
    stop_filter = StopFilter(["</end>"])
    assert [stop_filter.push(piece) for piece in ("text<", "/e", "nd>", "more")] == ["text", "", "", ""]
    assert stop_filter.stopped


def test_unfinished_stop_string_is_shown_later() -> None:
    stop_filter = StopFilter(["</end>"])
    assert stop_filter.push("a</e") == "a"
    assert stop_filter.push("x</") == "</ex"
    assert stop_filter.flush() == "</"
    assert not stop_filter.stopped


def test_text_passes_at_once_without_stop_strings() -> None:
    assert StopFilter([]).push("abc") == "abc"
