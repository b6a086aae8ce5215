"""`cluster.failures`: codes of newer versions are readable, and retryable ones are named."""

from __future__ import annotations

import msgspec
import pytest

from cluster.failures import FailureCode


@pytest.mark.parametrize("code", FailureCode)
def test_code_reads_back(code: FailureCode) -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(code), type=FailureCode) is code


def test_code_of_a_newer_version_reads_as_unknown() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode("code_of_2030"), type=FailureCode) is FailureCode.UNKNOWN


def test_only_passing_conditions_are_retryable() -> None:
    assert FailureCode.QUEUE_FULL.retryable
    assert FailureCode.NODE_LOST.retryable
    assert not FailureCode.TOO_LARGE.retryable
    assert not FailureCode.UNKNOWN.retryable


def test_transient_failures_are_retryable() -> None:
    transient = {code for code in FailureCode if code.transient}
    assert {FailureCode.UNDELIVERABLE, FailureCode.SESSION_LOST} <= transient
    assert not {code for code in transient if not code.retryable}
    assert not transient & {FailureCode.QUEUE_FULL, FailureCode.LOAD_FAILED, FailureCode.DOWNLOAD_FAILED}
