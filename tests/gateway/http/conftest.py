"""A server with short deadlines."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tests.support.gateway.http import SHORT, Served, application, serving


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serving(application(threading.Event()), SHORT) as served:
        yield served
