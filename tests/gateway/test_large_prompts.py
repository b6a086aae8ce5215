"""A gateway's process with a model of a huge context: prompts that no opening carries, and what hostile bodies cost."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import msgspec
import psutil
import pytest
from tokenizers import AddedToken

from bus.messages import InstanceEnsure, InstanceReady
from cluster.openings import MAX_PROMPT
from gateway.core.prompt_limit import MAX_TEXT_BYTES
from gateway.openai.requests import MAX_BODY_BYTES
from tests.support.gateway.chat import PLAIN, post
from tests.support.gateway.gateway_rig import CARD, CONTEXT_LENGTH, MODEL, Rig, running_rig
from tests.support.gateway.text_stage import WITHIN_S
from tests.support.models import tiny_tokenizer

CONTEXT = 1_000_000
HEAD, TAIL = b'{"model":"%s","messages":[{"role":"user","content":"' % MODEL.encode(), b'"}]}'
LONGEST = b"a token of many letters"  # so that as much text as is read fits the context
CLIENTS = 16
MOST_MB = 300
SOON_S = 3.0  # most of it is the client's own work

only_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows the most resident bytes of another")


@dataclass
class Measured:
    """A gateway that has answered a chat, and its resident bytes at that moment."""

    rig: Rig
    resident: int


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Measured]:
    folder, cards = tmp_path_factory.mktemp("gateway"), tmp_path_factory.mktemp("cards")
    (cards / "tiny.toml").write_text(CARD.replace(f"context_length = {CONTEXT_LENGTH}", f"context_length = {CONTEXT}"))
    with running_rig(folder, cards_dir=str(cards)) as rig:
        backend = tiny_tokenizer()
        backend.add_tokens([AddedToken(LONGEST.decode(), normalized=False)])
        backend.save(str(folder / "model" / "tokenizer.json"))
        rig.set_script("Hello world")
        stage = msgspec.structs.replace(rig.instance.stages[0], positions=0)  # it sets no limit
        instance = msgspec.structs.replace(rig.instance, stages=(stage,))
        rig.node.answers[InstanceEnsure] = lambda _: InstanceReady(instance)
        assert post(rig, PLAIN).status_code == 200
        yield Measured(rig, psutil.Process(rig.gateway.pid).memory_info().rss)


def body(text: bytes) -> bytes:
    """Return a chat of about eight MiB, of this text again and again."""
    return HEAD + text * ((MAX_BODY_BYTES - len(HEAD) - len(TAIL)) // len(text)) + TAIL


def padded(text: bytes) -> bytes:
    """Return a chat of nearly as much text as is read, with blanks behind it up to eight MiB."""
    chat = HEAD + text * (MAX_TEXT_BYTES // len(text) - 1) + TAIL
    return chat + b" " * (MAX_BODY_BYTES - len(chat))


def most_resident(pid: int) -> int:
    """Return the most resident bytes that a process has had."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match is not None
    return int(match[1]) << 10


def test_prompt_beyond_every_opening_is_refused_at_once(measured: Measured) -> None:
    began, opened = time.monotonic(), len(measured.rig.stage.openings)
    response = post(measured.rig, HEAD + b"x" * (MAX_PROMPT + 1) + TAIL)
    assert time.monotonic() - began < SOON_S
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, "context_length_exceeded", "messages")
    numbers = [int(number) for number in re.findall(r"\d+", error["message"])]
    assert any(number > MAX_PROMPT for number in numbers)
    assert MAX_PROMPT in numbers
    assert len(measured.rig.stage.openings) == opened


def test_models_name_their_longest_prompt(measured: Measured) -> None:
    model = httpx.get(f"{measured.rig.url}/v1/models/{MODEL}", timeout=WITHIN_S).json()
    assert (model["context_length"], model["max_prompt_tokens"]) == (CONTEXT, MAX_PROMPT)


@pytest.mark.parametrize("text", ["模型", "x"])
def test_eight_mebibytes_are_refused_within_milliseconds(measured: Measured, text: str) -> None:
    began = time.monotonic()
    response = post(measured.rig, body(text.encode()))
    assert time.monotonic() - began < SOON_S
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    assert re.search(rf"has 83\d{{5}} bytes of text, and at most {MAX_TEXT_BYTES}", error["message"])


def grown(measured: Measured, data: bytes) -> tuple[float, list[int]]:
    """Send a body from all clients at once; return by how many MB the gateway had grown at most, and the statuses."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        statuses = [r.status_code for r in clients.map(lambda _: post(measured.rig, data, 60.0), range(CLIENTS))]
    return (most_resident(measured.rig.gateway.pid) - measured.resident) / 1e6, statuses


@only_linux
@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(lambda: body("模型".encode()), id="cjk"),
        pytest.param(lambda: body(b"x" * 1000 + "🙂".encode()), id="wide"),
        pytest.param(lambda: padded("模型".encode()), id="as much as is read"),
        pytest.param(lambda: padded(b"<|endoftext|>"), id="control tokens"),
    ],
)
def test_sixteen_hostile_bodies_cost_less_than_300_megabytes(measured: Measured, hostile: Callable[[], bytes]) -> None:
    megabytes, statuses = grown(measured, hostile())
    assert set(statuses) <= {400, 503}
    assert 400 in statuses
    assert megabytes < MOST_MB
    assert post(measured.rig, PLAIN).status_code == 200


@only_linux
def test_sixteen_longest_texts_cost_less_than_300_megabytes(measured: Measured) -> None:
    megabytes, statuses = grown(measured, HEAD + LONGEST * (MAX_TEXT_BYTES // len(LONGEST) - 10) + TAIL)
    assert set(statuses) <= {200, 503}
    assert 200 in statuses
    assert megabytes < MOST_MB
