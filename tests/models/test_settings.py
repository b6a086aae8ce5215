"""Settings are checked for type and range when they are read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from models.errors import WeightsError
from models.settings import Settings

READERS: dict[str, Callable[[Settings], Any]] = {
    "count": lambda settings: settings.count("x", most=9),
    "number": lambda settings: settings.number("x", most=9.0),
    "numbers": lambda settings: settings.numbers("x", 2),
    "flag": lambda settings: settings.flag("x"),
    "text": lambda settings: settings.text("x"),
    "group": lambda settings: settings.group("x"),
}


@pytest.mark.parametrize(
    ("reader", "value"),
    [("count", 9), ("number", 9), ("number", 0.5), ("numbers", [1, 2.5]), ("flag", False), ("text", "")],
)
def test_setting_in_range_is_returned(reader: str, value: Any) -> None:
    found = READERS[reader](Settings({"x": value}, "config.json"))
    assert found == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    ("reader", "value"),
    [
        ("count", 0),
        ("count", 10),
        ("count", True),
        ("count", 2.0),
        ("number", 0),
        ("number", 9.5),
        ("number", float("nan")),
        ("number", "1"),
        ("numbers", [1]),
        ("numbers", "ab"),
        ("flag", 1),
        ("text", 1),
        ("group", [1]),
    ],
)
def test_setting_of_a_wrong_type_or_range_is_named(reader: str, value: Any) -> None:
    with pytest.raises(WeightsError, match=r"config\.json gives x as .*; pick another model"):
        READERS[reader](Settings({"x": value}, "config.json"))


def test_setting_that_is_missing_is_named() -> None:
    with pytest.raises(WeightsError, match=r"config\.json does not say its x; pick another model"):
        READERS["count"](Settings({}, "config.json"))


def test_item_of_a_list_is_named() -> None:
    with pytest.raises(WeightsError, match=r"config\.json, x, gives 1 as -1"):
        Settings({"x": [1, -1]}, "config.json").numbers("x", 2)


def test_setting_that_is_null_is_not_given() -> None:
    assert Settings({"x": None}, "config.json").count("x", 4) == 4
