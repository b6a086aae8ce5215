"""`exobus run` as a process that talks to a real gateway."""

from __future__ import annotations

import json
import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.failures import FailureCode
from cluster.openings import SessionFailure
from tests.support.commands import WITHIN_S, command, exobus, exobus_on_terminal
from tests.support.gateway.gateway_rig import MODEL, ROOT, Rig, running_rig
from tests.support.nodes import clean_environment

BROKEN = SessionFailure(FailureCode.STAGE_FAILED, "the engine ran out of memory")
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def module_rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running_rig(tmp_path_factory.mktemp("cli")) as rig:
        yield rig


@pytest.fixture
def rig(module_rig: Rig) -> Rig:
    module_rig.set_script("Hello world")
    return module_rig


def prompt_of(rig: Rig) -> str:
    """Return the text of the newest prompt."""
    return rig.tokenizer.decode(list(rig.stage.openings.values())[-1].prompt)


def test_stdout_is_the_answer_alone(rig: Rig) -> None:
    result = exobus("run", MODEL, "hello", "--api", rig.url)
    assert (result.returncode, result.stdout, result.stderr) == (0, "Hello world\n", "")


def test_options_reach_the_model(rig: Rig) -> None:
    options = ["--system", "be brief", "--max-tokens", "7", "--temperature", "0", "--seed", "11"]
    assert exobus("run", MODEL, *options, data="from a pipe", EXOBUS_API=rig.url).returncode == 0
    opening = list(rig.stage.openings.values())[-1]
    assert "be brief" in prompt_of(rig)
    assert "from a pipe" in prompt_of(rig)
    assert (opening.max_tokens, opening.sampling.temperature, opening.sampling.seed) == (7, 0.0, 11)


def test_piped_text_follows_the_prompt(rig: Rig) -> None:
    exobus("run", MODEL, "what color is it", "--api", rig.url, data="the sky is green")
    assert "what color is it\n\nthe sky is green" in prompt_of(rig)


def test_pipe_that_stays_open_is_explained(rig: Rig) -> None:
    process = subprocess.Popen(
        command(["run", MODEL, "hello", "--api", rig.url]),
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=clean_environment(),
    )
    assert process.stderr is not None
    assert "`< /dev/null` sends the prompt alone" in process.stderr.readline()
    assert process.communicate("", timeout=WITHIN_S)[0] == "Hello world\n"


def test_words_after_the_model_are_one_prompt(rig: Rig) -> None:
    exobus("run", MODEL, "what", "is", "a", "ring", "--api", rig.url)
    assert "what is a ring" in prompt_of(rig)


def test_sentence_in_place_of_the_model_is_explained() -> None:
    result = exobus("run", "What is a ring?", "--api", NOWHERE)
    assert (result.returncode, result.stdout) == (2, "")
    assert 'no model is named; try: exobus run smollm2-135m "What is a ring?"' in result.stderr


@pytest.mark.parametrize("piped", ["", " \n"])
def test_missing_prompt_ends_with_status_2(piped: str) -> None:
    result = exobus("run", MODEL, "--api", NOWHERE, data=piped)
    assert result.returncode == 2
    assert "there is no prompt" in result.stderr


def test_stats_are_a_line_on_stderr(rig: Rig) -> None:
    result = exobus("run", MODEL, "hello", "--stats", "--api", rig.url)
    assert result.stdout == "Hello world\n"
    pattern = r"\d+ tok · \d+\.\d tok/s · first token \d+\.\d\d s · prompt \d+ · 1 node\n"
    assert re.fullmatch(pattern, result.stderr)


def test_stats_show_cached_tokens(rig: Rig) -> None:
    rig.set_script("Hello world", cached=5)
    result = exobus("run", MODEL, "hello", "--stats", "--api", rig.url)
    opening = list(rig.stage.openings.values())[-1]
    assert f" · prompt {opening.first_position} (5 cached) · 1 node" in result.stderr


def test_json_is_the_whole_answer(rig: Rig) -> None:
    answer = json.loads(exobus("run", MODEL, "hello", "--json", "--api", rig.url).stdout)
    assert answer["choices"][0]["message"]["content"] == "Hello world"


def test_refusal_is_the_gateways_sentence_with_status_1(rig: Rig) -> None:
    result = exobus("run", "tinny", "hello", "--api", rig.url)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("exobus: there is no model 'tinny' in the catalogue; did you mean tiny")


def test_failure_in_mid_answer_starts_a_new_line(rig: Rig) -> None:
    rig.set_script("Hello", end=False, failure=BROKEN)
    result = exobus("run", MODEL, "hello", "--api", rig.url)
    assert (result.returncode, result.stdout) == (1, "Hello\n")
    assert "the engine ran out of memory" in result.stderr


def test_answer_cut_at_the_limit_is_reported(rig: Rig) -> None:
    rig.set_script("Hello world", end=False)
    result = exobus("run", MODEL, "hello", "--max-tokens", "2", "--api", rig.url)
    assert result.returncode == 0
    assert result.stderr == "exobus: the answer was cut at its token limit; --max-tokens allows more\n"


def test_escapes_never_reach_the_terminal(rig: Rig) -> None:
    rig.set_script("a\x1b]0;title\x07b")
    assert "\x1b]0;" in exobus("run", MODEL, "hello", "--api", rig.url).stdout
    rig.set_script("a\x1b]0;title\x07b")
    shown = exobus_on_terminal("run", MODEL, "hello", "--api", rig.url)
    assert "a�]0;title�b" in shown


@contextmanager
def interrupts_on() -> Iterator[None]:
    """Let processes that start during the block be interrupted, also if these tests run in a shell's background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("stats", [True, False])
def test_interrupt_ends_the_line_and_shows_stats(rig: Rig, stats: bool) -> None:
    rig.set_script("Hello", end=False)
    with interrupts_on():
        process = subprocess.Popen(
            command(["run", MODEL, "hello", "--api", rig.url, *(["--stats"] if stats else [])]),
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**clean_environment(), "PYTHONUNBUFFERED": "1"},
        )
    assert process.stdout is not None
    assert process.stdout.read(5) == "Hello"
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=WITHIN_S)
    assert (process.returncode, output) == (130, "\n")
    assert re.fullmatch(r"interrupted after \d+\.\d s · first token \d+\.\d\d s\n" if stats else "", errors)
