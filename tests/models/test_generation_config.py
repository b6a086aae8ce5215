"""`models.generation_config`: a model's recommended sampling is read, and what cannot be followed is named."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from models.card import SamplingDefaults
from models.generation_config import end_ids, sampling_defaults


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, None),
        ({"eos_token_id": 2, "transformers_version": "5.0"}, None),
        ({"temperature": None, "do_sample": True}, None),
        ({"temperature": 0.6, "top_p": 0.95, "top_k": 20, "min_p": 0}, SamplingDefaults(0.6, 0.95, 20, 0.0)),
        ({"temperature": 1}, SamplingDefaults()),
        ({"top_k": -1}, SamplingDefaults(top_k=0)),
    ],
)
def test_recommended_sampling_is_read(settings: dict[str, Any], expected: SamplingDefaults | None) -> None:
    assert sampling_defaults(settings, "g.json") == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", "hot"),
        ("temperature", True),
        ("temperature", -1),
        ("temperature", float("nan")),
        ("temperature", 101),
        ("top_p", 1.5),
        ("top_k", 0.5),
        ("top_k", -2),
        ("min_p", [0.1]),
    ],
)
def test_value_that_cannot_be_followed_is_named(caplog: pytest.LogCaptureFixture, name: str, value: Any) -> None:
    assert sampling_defaults({name: value, "top_p": 0.5} | {name: value}, "g.json") in (
        None,
        SamplingDefaults(top_p=0.5),
    )
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"g.json is not followed: {name} must be" in record.getMessage()


def test_option_that_exobus_lacks_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert sampling_defaults({"repetition_penalty": 1.05, "top_p": 0.8}, "g.json") == SamplingDefaults(top_p=0.8)
    assert [record.getMessage() for record in caplog.records] == [
        "g.json sets repetition_penalty, which exobus does not do"
    ]


@pytest.mark.parametrize(
    ("listed", "ids"), [(None, set()), (2, {2}), ([2, 7], {2, 7}), ([True, -1, "x", 1 << 31, 3], {3}), ("2", set())]
)
def test_end_ids_are_a_number_or_a_list(listed: Any, ids: set[int]) -> None:
    assert end_ids({"eos_token_id": listed}) == ids
