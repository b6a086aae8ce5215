"""schemathesis attacks a real gateway for a while, with our schema of requests and OpenAI's of responses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gateway.openai.requests import ChatRequest
from tests.support.gateway.gateway_rig import MODEL, Rig, running_rig

CHAT = "/v1/chat/completions"
CHAT_S, REPORTS_S = 24, 6
ROUNDS = 5  # as many as a busy machine may need for enough requests
SCHEMAS = json.loads(Path(__file__).parents[2].joinpath("support", "gateway", "openai_schema.json").read_text())[
    "components"
]["schemas"]
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "negative_data_rejection", "allow_header_conformance",
)  # fmt: skip
SETTINGS = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "4xx", "503"]
negative_data_rejection.expected-statuses = ["4xx"]
"""


def reference(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def answers(kind: dict[str, Any], **others: dict[str, Any]) -> dict[str, Any]:
    """Return the responses of a route: this one, or an error in OpenAI's shape; of server errors only 503."""
    error = {"description": "refused", "content": {"application/json": {"schema": reference("ErrorResponse")}}}
    done = {"description": "done", "content": {"application/json": {"schema": kind}, **others}}
    return {"200": done, "4XX": error, "503": error}


def description() -> dict[str, Any]:
    """Return the gateway's OpenAPI schema: requests from our own types, responses from OpenAI's."""
    _, ours = msgspec.json.schema_components([ChatRequest], ref_template="#/components/schemas/{name}")
    stop = {"type": "string", "minLength": 1}
    ours["ChatRequest"]["properties"] |= {
        "model": {"enum": [MODEL, "tiny-chat"]},
        "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**64 - 1},
        "stop": {"anyOf": [stop, {"type": "array", "items": stop, "maxItems": 4}, {"type": "null"}]},
    }
    asked = {"required": True, "content": {"application/json": {"schema": reference("ChatRequest")}}}
    name = {"name": "model_id", "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
    anything = {"type": "object"}
    whole = reference("CreateChatCompletionResponse")
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    stream = {"text/event-stream": {"schema": event}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "exobus", "version": "1"},
        "paths": {
            CHAT: {"post": {"requestBody": asked, "responses": answers(whole, **stream)}},
            "/v1/models": {"get": {"responses": answers(reference("ListModelsResponse"))}},
            "/v1/models/{model_id}": {"get": {"parameters": [name], "responses": answers(reference("Model"))}},
            "/v1/topology": {"get": {"responses": answers(anything)}},
            "/health": {"get": {"responses": answers(anything)}},
        },
        "components": {"schemas": {**SCHEMAS, **ours}},
    }


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("schema")) as rig:
        rig.set_script("Hello world")
        yield rig


def attack(rig: Rig, folder: Path, seconds: int, enough: int, *which: str) -> int:
    """Attack the routes that match for a while, and again until there were enough requests; return their number."""
    seed = int(os.environ.get("SCHEMATHESIS_SEED", "1"))  # a changing seed could fail the build of an unrelated change
    sent = 0
    for number in range(ROUNDS):
        sent += one_round(rig, folder, seconds, seed + number, *which)
        if sent > enough:
            break
    return sent


def one_round(rig: Rig, folder: Path, seconds: int, seed: int, *which: str) -> int:
    """Attack the routes that match for a while, and return the number of requests. Any finding fails the test."""
    (folder / "openapi.json").write_text(json.dumps(description()))
    (folder / "schemathesis.toml").write_text(SETTINGS)
    limits = [
        "--seed",
        str(seed),
        "--max-time",
        str(seconds),
        "--phases",
        "coverage,fuzzing",
        "--warnings",
        "off",
        "--no-color",
    ]
    program = [sys.executable, "-m", "schemathesis.cli", "run", "openapi.json", "--url", rig.url]
    done = subprocess.run(
        [*program, *which, "--checks", ",".join(CHECKS), *limits],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200"},
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    generated = re.search(r"([\d,]+) generated", done.stdout)
    assert generated, done.stdout
    return int(generated[1].replace(",", ""))


def log(rig: Rig) -> str:
    return Path(rig.config.data_dir, "gateway.log").read_text()


def test_generated_chats_never_break_the_schema(rig: Rig, tmp_path: Path) -> None:
    assert attack(rig, tmp_path, CHAT_S, 100, "--include-path", CHAT) > 100
    assert len(rig.stage.openings) > 20
    assert rig.all_closed()
    assert rig.gateway.poll() is None
    assert "Error at" not in log(rig)


def test_generated_requests_never_break_other_routes(rig: Rig, tmp_path: Path) -> None:
    assert attack(rig, tmp_path, REPORTS_S, 50, "--exclude-path", CHAT) > 50
    assert rig.gateway.poll() is None
    assert "Error at" not in log(rig)
