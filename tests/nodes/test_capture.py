"""Two whole nodes connected by a cable: what an eavesdropper sees of a chat."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec

from models.cache import default_cache_root
from models.catalogue import DEFAULT_MODEL
from models.tokenizers.tokenizer import Tokenizer
from tests.support.models import default_model_path
from tests.support.network.network_capture import Side, capturing, little_endian, send_plainly, wire
from tests.support.nodes import CODE, ROOT, NodeProcess

QUESTION = "Mind the xylophone in the quartz quarry. What is the capital of France?"
RUN = 4  # token ids in a row that count as the text
HIDDEN_BYTES = 2 * 576  # of one token between two stages of the default model
FETCH = """
import json, sys, httpx
url, body = sys.argv[1], json.loads(sys.argv[2])
answer = httpx.post(url, json=body, timeout=120.0) if body else httpx.get(url, timeout=30.0)
sys.stdout.write(answer.text)
"""


def start(running: ExitStack, side: Side, name: str, folder: Path, other: Path) -> NodeProcess:
    """Start a node on one side of the wire. The folder of the other, with its ipc endpoints, is hidden from it."""
    (folder / "tmp").mkdir(parents=True)
    settings = {"EXOBUS_CACHE": str(default_cache_root()), "EXOBUS_JOIN": CODE.text(), "TMPDIR": str(folder / "tmp")}
    ports = ["--api-port", "0", "--bus-port", "0", "--join-port", "0", "--host", side.address]
    node = NodeProcess(
        folder / name,
        ["--name", name, "--engine", "numpy", *ports],
        settings,
        lambda *c: side.command(*c, hidden=other),
    )
    running.callback(node.stop)
    return node


def fetch(side: Side, url: str, body: dict[str, Any] | None = None) -> Any:
    command = side.command(sys.executable, "-c", FETCH, url, json.dumps(body))
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=150, check=True)
    return json.loads(done.stdout)


def wait_until_linked(side: Side, node: NodeProcess) -> None:
    for _ in range(100):
        if len(fetch(side, f"{node.api}/v1/topology")["nodes"]) == 2:
            return
    raise AssertionError("the nodes did not find each other over the wire")


def chat(side: Side, node: NodeProcess) -> str:
    messages = [{"role": "user", "content": QUESTION}]
    body = {"model": DEFAULT_MODEL, "temperature": 0, "max_tokens": 24, "messages": messages}
    answer = fetch(side, f"{node.api}/v1/chat/completions", body)
    return str(answer["choices"][0]["message"]["content"])


def test_prompt_and_answer_are_not_on_the_wire() -> None:
    model = default_model_path()
    tokenizer = Tokenizer.load(model.parent)
    with wire("exobus") as (here, there), ExitStack() as running:
        folders = [Path(running.enter_context(tempfile.TemporaryDirectory(prefix="xb-"))) for _ in range(2)]
        with capturing(here) as capture:
            ada = start(running, here, "ada", folders[0], folders[1])
            bob = start(running, there, "bob", folders[1], folders[0])
            ada.ready()
            bob.ready()
            wait_until_linked(here, ada)
            before = capture.tcp_bytes
            text = chat(here, ada)
            stages = fetch(here, f"{ada.api}/v1/topology")["instances"][0]["stages"]
            crossed = capture.tcp_bytes - before
        assert "Paris" in text
        assert {stage["node"] for stage in stages} == {"ada", "bob"}
        prompt, answer = tokenizer.encode(QUESTION), tokenizer.encode(text)
        assert crossed > HIDDEN_BYTES * (len(prompt) + len(answer)), "the chat was not on the wire"
        for words in (QUESTION, text, CODE.text()):
            assert not capture.gives_away(words.encode())
        assert not capture.gives_away(CODE.secret)
        for tokens in (prompt, answer):
            assert not capture.gives_away(little_endian(tokens), 4 * RUN)
            assert not capture.gives_away(msgspec.msgpack.encode(tokens)[1:], 2 * RUN)


def test_plain_text_is_seen_also_across_packets() -> None:
    """This shows that the test above can fail."""
    with wire("exobus") as (here, there), capturing(here) as capture:
        assert not capture.gives_away(QUESTION.encode())
        send_plainly(QUESTION.encode(), here, there)
    assert capture.gives_away(QUESTION.encode())
