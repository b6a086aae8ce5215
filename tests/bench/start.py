"""The time from `exobus node` to the first token, and the memory of an idle node."""

from __future__ import annotations

import json
import time
from statistics import median

import httpx
import psutil

from models.catalogue import DEFAULT_MODEL
from tests.bench.figures import Figure
from tests.support.nodes import NodeProcess, nodes

ROUNDS = 3


def measure() -> list[Figure]:
    """Measure the medians of `start_s` and `idle_mb`; an unmeasured start first fetches files and measures engines."""
    _start()
    rounds = [_start() for _ in range(ROUNDS)]
    seconds, megabytes = (median(column) for column in zip(*rounds, strict=True))
    return [
        Figure("start_s", seconds, "s", "≤ 5", note="`exobus node` to the first token, files present"),
        Figure("idle_mb", megabytes, "MB", "≤ 350", note="resident, all processes of an idle node together"),
    ]


def _start() -> tuple[float, float]:
    begun = time.monotonic()
    with nodes("bench") as (node,):
        idle = _resident_mb(node)
        _first_token(node)
        return time.monotonic() - begun, idle


def _resident_mb(node: NodeProcess) -> float:
    return sum(process.memory_info().rss for process in (psutil.Process(node.process.pid), *node.children())) / 1e6


def _first_token(node: NodeProcess) -> None:
    question = {"model": DEFAULT_MODEL, "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
    with httpx.stream("POST", f"{node.api}/v1/chat/completions", json=question, timeout=120.0) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {") and json.loads(line[6:])["choices"][0]["delta"].get("content"):
                return
    raise AssertionError("the stream ended without a token")
