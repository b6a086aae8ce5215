"""`exobus run`, `models` and `topology` as processes that talk to a real gateway; help, version and exit codes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster.failures import FailureCode
from cluster.openings import SessionFailure
from tests.support.ring import MODEL, NODE_ID, POSITIONS, ROOT, Rig, running_rig

BROKEN = SessionFailure(FailureCode.STAGE_FAILED, "the engine ran out of memory")
NOWHERE = "http://127.0.0.1:9"
HEAVY = ("zmq", "numpy", "httpx", "msgspec", "asyncio", "rich", "starlette", "tokenizers")


def exobus(*arguments: str, data: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command to its end."""
    return subprocess.run(
        [sys.executable, "-m", "cli", *arguments],
        cwd=ROOT,
        input=data,
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "NO_COLOR": "1", "COLUMNS": "200", **environment},
    )


@pytest.fixture(scope="module")
def module_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("cli")) as rig:
        yield rig


@pytest.fixture
def rig(module_rig: Rig) -> Rig:
    module_rig.tell("Hello world")
    return module_rig


def test_help_names_every_command() -> None:
    result = exobus("--help")
    assert result.returncode == 0
    assert all(
        re.search(rf"\n  {name} ", result.stdout) for name in ("node", "run", "models", "key", "topology", "bus")
    )


def test_help_imports_nothing_heavy() -> None:
    program = "import sys, cli.main; print(' '.join(name for name in sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not set(HEAVY) & set(loaded.stdout.split())


def test_the_version_is_one_line() -> None:
    assert re.fullmatch(r"exobus \S+\n", exobus("--version").stdout)


@pytest.mark.parametrize(
    "arguments", [["run"], ["run", "m", "p", "--temperature", "3"], ["nothing"], ["bus", "nothing"]]
)
def test_a_wrong_use_ends_with_status_2(arguments: list[str]) -> None:
    result = exobus(*arguments)
    assert result.returncode == 2
    assert result.stdout == ""


def test_run_prints_the_answer_and_nothing_else(rig: Rig) -> None:
    result = exobus("run", MODEL, "hello", "--api", rig.url)
    assert (result.returncode, result.stdout, result.stderr) == (0, "Hello world\n", "")


def test_run_takes_the_prompt_from_standard_input_and_its_options_to_the_model(rig: Rig) -> None:
    options = ["--system", "be brief", "--max-tokens", "7", "--temperature", "0", "--seed", "11"]
    assert exobus("run", MODEL, *options, data="from a pipe", EXOBUS_API=rig.url).returncode == 0
    opening = list(rig.stage.openings.values())[-1]
    prompt = rig.tokenizer.decode(opening.prompt)
    assert "be brief" in prompt
    assert "from a pipe" in prompt
    assert (opening.max_tokens, opening.sampling.temperature, opening.sampling.seed) == (7, 0.0, 11)


def test_run_with_stats_ends_with_a_line_of_speeds(rig: Rig) -> None:
    result = exobus("run", MODEL, "hello", "--stats", "--api", rig.url)
    assert result.stdout == "Hello world\n"
    pattern = r"\d+ tok · \d+\.\d tok/s · first token \d+\.\d\d s · prompt \d+ · 1 node\n"
    assert re.fullmatch(pattern, result.stderr)


def test_run_with_stats_tells_what_the_cache_held(rig: Rig) -> None:
    rig.tell("Hello world", cached=5)
    result = exobus("run", MODEL, "hello", "--stats", "--api", rig.url)
    opening = list(rig.stage.openings.values())[-1]
    assert f" · prompt {opening.first_position} (5 cached) · 1 node" in result.stderr


def test_run_as_json_prints_the_whole_answer(rig: Rig) -> None:
    answer = json.loads(exobus("run", MODEL, "hello", "--json", "--api", rig.url).stdout)
    assert answer["choices"][0]["message"]["content"] == "Hello world"


def test_run_shows_the_gateways_sentence_and_ends_with_status_1(rig: Rig) -> None:
    result = exobus("run", "tinny", "hello", "--api", rig.url)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("exobus: there is no model 'tinny' in the catalogue; did you mean tiny")


def test_run_tells_of_a_failure_in_the_middle_of_an_answer(rig: Rig) -> None:
    rig.tell("Hello", end=False, failure=BROKEN)
    result = exobus("run", MODEL, "hello", "--api", rig.url)
    assert (result.returncode, result.stdout) == (1, "Hello")
    assert "the engine ran out of memory" in result.stderr


def test_run_without_a_prompt_ends_with_status_2() -> None:
    result = exobus("run", MODEL, "--api", NOWHERE)
    assert result.returncode == 2
    assert "prompt" in result.stderr


@pytest.mark.parametrize("command", [["run", MODEL, "hi"], ["models", "ls"], ["topology"]])
def test_a_node_that_does_not_answer_ends_with_status_3_and_the_next_step(command: list[str]) -> None:
    result = exobus(*command, "--api", NOWHERE)
    assert (result.returncode, result.stdout) == (3, "")
    assert "`exobus node`" in result.stderr


@pytest.mark.parametrize("url", ["nonsense", "http://127.0.0.1:notaport", "ftp://"])
def test_an_address_that_is_none_ends_with_status_3(url: str) -> None:
    result = exobus("models", "ls", "--api", url)
    assert result.returncode == 3
    assert len(result.stderr.strip().splitlines()) == 1


def test_models_are_listed_for_people_and_for_programs(rig: Rig) -> None:
    lines = exobus("models", "ls", "--api", rig.url).stdout.splitlines()
    assert lines[0].split() == ["MODEL", "DOWNLOAD", "LAYERS", "CONTEXT", "NAME"]
    assert any(line.split()[0] == MODEL for line in lines)
    assert MODEL in {model["id"] for model in json.loads(exobus("models", "ls", "--json", "--api", rig.url).stdout)}


def test_the_topology_shows_nodes_and_layers_for_people_and_for_programs(rig: Rig) -> None:
    text = exobus("topology", "--api", rig.url).stdout
    assert f"rig *  {NODE_ID}" in text
    assert re.search(r"rig +layers +0-3 +numpy +████  4,096 positions", text)
    body = json.loads(exobus("topology", "--json", "--api", rig.url).stdout)
    assert body["instances"][0]["stages"][0]["end_layer"] == 4
    assert body["instances"][0]["stages"][0]["positions"] == POSITIONS


def test_a_node_on_this_machine_is_found_by_itself(rig: Rig) -> None:
    found = exobus("topology", "--json", EXOBUS_DATA_DIR=rig.config.data_dir)
    assert json.loads(found.stdout)["node_id"] == NODE_ID
