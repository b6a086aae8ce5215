"""`gateway.core.session_checker`: real rings, of which a process is frozen for seconds, as a suspended machine is."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.gateway.gateway_rig import MODEL
from tests.support.gateway.text_stage import WITHIN_S
from tests.support.ring.ring_rig import RingRig, freeze_for, frozen, running_ring
from tests.support.ring.synthetic_engine import Model

SLOW = Model(call_ms=20.0)
FREEZE_S = 3.0  # longer than a heartbeat's timeout of 1.5 s
STREAM = {"stream": True, "max_tokens": 400, "stream_options": {"include_usage": True}}
IDLE_S = 1.0  # after it heartbeats are the last that came over a connection, so that their time to live counts


def body(**fields: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": "hi"}]
    return {"model": MODEL, "messages": messages, "temperature": 0, "max_tokens": 4, **fields}


def ask(ring: RingRig, timeout_s: float = WITHIN_S) -> int:
    """Send a chat, and return the status of its response."""
    return httpx.post(f"{ring.url}/v1/chat/completions", json=body(), timeout=timeout_s).status_code


@contextmanager
def streaming(ring: RingRig) -> Iterator[Iterator[dict[str, Any]]]:
    """Begin a long stream, and yield its chunks."""
    with httpx.stream("POST", f"{ring.url}/v1/chat/completions", json=body(**STREAM), timeout=WITHIN_S) as response:
        lines = response.iter_lines()
        yield (json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {"))


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RingRig]:
    """Run a ring of two for the tests that break nothing for good."""
    with running_ring(tmp_path_factory.mktemp("ring"), 2, SLOW) as ring:
        yield ring


def test_opening_that_a_frozen_stage_loses_is_repeated(ring: RingRig) -> None:
    with ThreadPoolExecutor(1) as pool:
        assert ask(ring) == 200
        threading.Event().wait(IDLE_S)
        with frozen(ring.engines[0]):
            asked = pool.submit(ask, ring)
            threading.Event().wait(FREEZE_S)
        thawed = time.monotonic()
        assert asked.result() == 200
        assert time.monotonic() - thawed < 10.0


def test_thawed_gateway_goes_on_or_fails_soon(ring: RingRig) -> None:
    """On a busy machine a stage may miss the freeze, keep its connection, and lose no token."""
    with ThreadPoolExecutor(1) as pool, streaming(ring) as chunks:
        for _ in range(5):
            assert "error" not in next(chunks)
        thawed = freeze_for(ring.gateway, 4.0)
        asked = pool.submit(ask, ring, 10.0)
        *_, last = chunks
        if "error" in last:
            assert last["error"]["code"] in ("session_lost", "token_lost")
            assert time.monotonic() - thawed < 3.0
        else:
            assert last["usage"]["completion_tokens"] == STREAM["max_tokens"]
        assert asked.result() == 200


def test_session_of_a_killed_engine_fails_soon(tmp_path: Path) -> None:
    with running_ring(tmp_path, 1, SLOW) as ring, streaming(ring) as chunks:
        assert "error" not in next(chunks)
        ring.engines[0].kill()
        killed = time.monotonic()
        *_, last = chunks
        assert last["error"]["code"] == "node_lost"
        assert time.monotonic() - killed < 6.0
