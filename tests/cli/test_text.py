"""Sizes, times and tables as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli.text import parse_bytes, parse_seconds, show_bytes, show_seconds, table


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("12GB", 12 * 10**9),
        ("1.5GiB", 3 << 29),
        ("512 mb", 512 * 10**6),
        ("4g", 4 * 10**9),
        ("1000", 1000),
        ("2KiB", 2048),
    ],
)
def test_sizes_are_parsed(text: str, count: int) -> None:
    assert parse_bytes(text) == count


@given(st.text(max_size=12))
def test_other_text_is_refused_with_an_example(text: str) -> None:
    try:
        count = parse_bytes(text)
    except ValueError as error:
        message = str(error)
    else:
        message = ""
        assert count >= 0
    assert not message or "12GB" in message


@pytest.mark.parametrize(
    ("text", "count"), [("30s", 30), ("10m", 600), ("2H", 7200), ("45", 45), ("0", 0), ("-1", -1), ("-5m", -1)]
)
def test_times_are_parsed(text: str, count: int) -> None:
    assert parse_seconds(text) == count


@pytest.mark.parametrize("text", ["", "soon", "1.5h", "10 days", "m"])
def test_other_times_are_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="write 30s, 10m, 2h, 0, or -1 for ever"):
        parse_seconds(text)


@pytest.mark.parametrize(
    ("count", "text"), [(1, "1 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h")]
)
def test_times_are_shown(count: int, text: str) -> None:
    assert show_seconds(count) == text


@pytest.mark.parametrize(("count", "text"), [(0, "0 MB"), (98_000_000, "98 MB"), (1_500_000_000, "1.5 GB")])
def test_sizes_are_shown(count: int, text: str) -> None:
    assert show_bytes(count) == text


def test_cells_do_not_control_the_terminal() -> None:
    assert table(("A",), [("\x1b[2J",)]) == "A\n�[2J"


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    assert table(("A", "LONG"), [("wide", "b"), ("c", "")]) == "A     LONG\nwide  b\nc"
