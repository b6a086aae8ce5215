"""`common.limits`: names that cannot forge a line of a log, and texts cut to their length."""

from __future__ import annotations

import msgspec
import pytest

from common.limits import MAX_NAME, Name, cut


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[2J", "a\u202eb", "a\u2028b", "a\0", "n" * (MAX_NAME + 1)])
def test_unprintable_or_long_name_is_refused(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(text, Name)


@pytest.mark.parametrize("text", ["", "ada", "Küche 2", "n" * MAX_NAME])
def test_ordinary_name_is_accepted(text: str) -> None:
    assert msgspec.convert(text, Name) == text


def test_long_text_is_cut_to_its_limit() -> None:
    assert cut("abcdef", 6) == "abcdef"
    assert cut("abcdefg", 6) == "abcde…"
