"""`exobus run`: one question, one answer, printed as it comes."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.exit_codes import USAGE, leave
from cli.options import ApiKeyOption, ApiOption, JsonOption, failures_shown

if TYPE_CHECKING:
    from cli.api_client import Api


def run(
    model: Annotated[str, typer.Argument(help="Id of a model; see `exobus models ls`.")],
    prompt: Annotated[str | None, typer.Argument(help="The question.", show_default="standard input")] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Most tokens of the answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print speed and counts afterwards.")] = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
    api_key: ApiKeyOption = None,
) -> None:
    """Ask a model one question and print the answer as it comes."""
    from cli.local_nodes import api as gateway

    body = request_body(model, prompt or _standard_input(), system, max_tokens, temperature, seed)
    with failures_shown():
        if as_json:
            _print_whole(gateway(api, api_key), body)
        else:
            _print_stream(gateway(api, api_key), body, stats=stats)


def request_body(
    model: str,
    prompt: str,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
) -> dict[str, Any]:
    """The chat request; what was not asked for is not in it."""
    messages = [{"role": "system", "content": system}] if system else []
    chosen = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    asked = {name: value for name, value in chosen.items() if value is not None}
    return {"model": model, "messages": [*messages, {"role": "user", "content": prompt}], **asked}


def stats_line(timings: Mapping[str, Any], first_token_s: float) -> str:
    """Such as `128 tok · 28.9 tok/s · first token 0.53 s · prompt 512 (480 cached) · 2 nodes`."""
    nodes, cached = timings["nodes"], timings["cache_n"]
    return " · ".join(
        (
            f"{timings['predicted_n']} tok",
            f"{timings['predicted_per_second']:.1f} tok/s",
            f"first token {first_token_s:.2f} s",
            f"prompt {timings['prompt_n'] + cached}" + (f" ({cached} cached)" if cached else ""),
            f"{nodes} node{'s' if nodes != 1 else ''}",
        )
    )


def _standard_input() -> str:
    if sys.stdin.isatty():
        leave("there is no prompt; give one, or pipe it in", USAGE)
    text = sys.stdin.read()
    if not text.strip():
        leave("the prompt on standard input is empty; give one", USAGE)
    return text


def _print_whole(api: Api, body: dict[str, Any]) -> None:
    from cli.api_client import post

    typer.echo(json.dumps(post(api, "/v1/chat/completions", body)))


def _print_stream(api: Api, body: dict[str, Any], *, stats: bool) -> None:
    from cli.api_client import stream

    asked = time.monotonic()
    first_token_s, timings = 0.0, None
    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    waiting = _Waiting()
    for chunk in stream(api, "/v1/chat/completions", streamed):
        if isinstance(chunk, str):
            waiting.show(chunk)
            continue
        timings = chunk.get("timings", timings)
        for choice in chunk["choices"]:
            if text := choice["delta"].get("content"):
                waiting.clear()
                first_token_s = first_token_s or time.monotonic() - asked
                typer.echo(text, nl=False)
    waiting.clear()
    typer.echo()
    if stats and timings:
        typer.echo(stats_line(timings, first_token_s), err=True)


class _Waiting:
    """What the node says it is doing, on one line of a terminal's standard error, until the answer comes."""

    def __init__(self) -> None:
        self._shown = False

    def show(self, text: str) -> None:
        """Replace the line."""
        if sys.stderr.isatty():
            typer.echo(f"\r\x1b[2K{text.removeprefix('exobus ')} …", nl=False, err=True)
            self._shown = True

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            typer.echo("\r\x1b[2K", nl=False, err=True)
            self._shown = False
