"""`exobus run`: one question, one answer, printed as it comes."""

from __future__ import annotations

import json
import select
import shutil
import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cli.options import INTERRUPTED, USAGE, ApiKeyOption, ApiOption, JsonOption, NodeOption, failures_shown, leave

if TYPE_CHECKING:
    from cli.api_client import Api

PIPE_HINT_AFTER_S = 2.0


def run(
    model: Annotated[str, typer.Argument(help="An id (`exobus models ls`), ORG/REPO[:Q4_K_M], or a path.")],
    prompt: Annotated[
        list[str] | None, typer.Argument(help="The question; piped text is added to it.", show_default="standard input")
    ] = None,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum number of tokens of the answer.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same answer.")] = None,
    stats: Annotated[bool, typer.Option("--stats", help="Print speed and counts afterwards.")] = False,
    as_json: JsonOption = False,
    api: ApiOption = None,
    api_key: ApiKeyOption = None,
    node: NodeOption = None,
) -> None:
    """Ask a model one question."""
    from cli.local_nodes import gateway

    if not prompt and " " in model:
        from models.catalogue import DEFAULT_MODEL

        leave(f'no model is named; try: exobus run {DEFAULT_MODEL} "{model}"', USAGE)
    model = _named(model, api, node)
    body = request_body(model, _message(" ".join(prompt or ())), system, max_tokens, temperature, seed)
    with failures_shown():
        if as_json:
            _print_whole(gateway(api, api_key, node), body)
        else:
            _print_stream(gateway(api, api_key, node), body, stats=stats)


def _named(model: str, api: str | None, node: str | None) -> str:
    """Return the name to send: a path is added to the catalogue of a node here, since the API takes none."""
    from models.errors import BadName
    from models.names import LocalPath, parse_name

    try:
        name = parse_name(model)
    except BadName as error:
        leave(str(error), USAGE)
    if not isinstance(name, LocalPath):
        return model
    if api:
        leave(f"{model} is a path of this machine; add it on the node with `exobus models add`, and use its id", USAGE)
    from cli.models.adding import add_path

    card = add_path(name.path, "", node)
    typer.echo(f"exobus: added as {card.id}; `exobus models rm {card.id}` takes it out again", err=True)
    return card.id


def request_body(
    model: str,
    prompt: str,
    system: str | None,
    max_tokens: int | None,
    temperature: float | None,
    seed: int | None,
) -> dict[str, Any]:
    """Build the chat request; options that were not given are left out."""
    messages = [{"role": "system", "content": system}] if system else []
    options = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
    given = {name: value for name, value in options.items() if value is not None}
    return {"model": model, "messages": [*messages, {"role": "user", "content": prompt}], **given}


def stats_line(timings: Mapping[str, Any], first_token_s: float) -> str:
    """Format timings, such as `128 tok · 28.9 tok/s · first token 0.53 s · prompt 512 (480 cached) · 2 nodes`."""
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


def _message(prompt: str) -> str:
    """Return the prompt, followed by the text on standard input if that is not a terminal."""
    piped = ""
    if sys.stdin is not None and not sys.stdin.isatty():
        if prompt and not select.select([sys.stdin], [], [], PIPE_HINT_AFTER_S)[0]:  # ssh leaves such a pipe open
            typer.echo("exobus: waiting for the end of standard input; `< /dev/null` sends the prompt alone", err=True)
        piped = sys.stdin.read()
    parts = [part for part in (prompt, piped) if part.strip()]
    if not parts:
        leave("there is no prompt; give one, or pipe it in", USAGE)
    return "\n\n".join(parts)


def _print_whole(api: Api, body: dict[str, Any]) -> None:
    from cli.api_client import post

    typer.echo(json.dumps(post(api, "/v1/chat/completions", body)))


def _print_stream(api: Api, body: dict[str, Any], *, stats: bool) -> None:
    """Print the answer as it comes. What was printed of an answer ends with a newline, also if it fails half-way."""
    from cli.api_client import ApiRefused, ApiUnreachable, stream

    streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
    answer = _Answer()
    try:
        for chunk in stream(api, "/v1/chat/completions", streamed):
            answer.show(chunk)
    except (ApiRefused, ApiUnreachable):
        answer.end()
        raise
    except KeyboardInterrupt:
        answer.end()
        if stats:
            typer.echo(answer.interrupted_line(), err=True)
        raise typer.Exit(INTERRUPTED) from None
    answer.end(newline=True)
    if answer.finish_reason == "length":
        typer.echo("exobus: the answer was cut at its token limit; --max-tokens allows more", err=True)
    if stats and answer.timings:
        typer.echo(stats_line(answer.timings, answer.first_text_s), err=True)


class _Answer:
    """An answer on the terminal, and before it, on standard error, what the node does meanwhile."""

    def __init__(self) -> None:
        self.timings: dict[str, Any] = {}
        self.finish_reason = ""
        self.first_text_s = 0.0
        self._begun = time.monotonic()
        self._pieces = 0
        self._status_shown = False
        self._filter = sys.stdout.isatty()

    def show(self, chunk: dict[str, Any] | str) -> None:
        """Print a chunk's text, or replace the line of status by a comment."""
        if isinstance(chunk, str):
            self._show_status(chunk.removeprefix("exobus "))
            return
        self.timings = chunk.get("timings", self.timings)
        for choice in chunk["choices"]:
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
            if text := choice["delta"].get("content"):
                self._show_text(text)

    def end(self, *, newline: bool = False) -> None:
        """Remove the line of status, and end the last line of text, or print an empty one if `newline`."""
        self._clear_status()
        if self._pieces or newline:
            typer.echo()

    def interrupted_line(self) -> str:
        """Return what is known of an answer that Ctrl-C ended; the gateway sends its figures at the end only."""
        seconds = time.monotonic() - self._begun
        first = f" · first token {self.first_text_s:.2f} s" if self._pieces else ""
        return f"interrupted after {seconds:.1f} s{first}"

    def _show_text(self, text: str) -> None:
        from common.text_safety import printable

        self._clear_status()
        self.first_text_s = self.first_text_s or time.monotonic() - self._begun
        self._pieces += 1
        typer.echo(printable(text) if self._filter else text, nl=False)

    def _show_status(self, text: str) -> None:
        from common.text_safety import one_line

        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns
            typer.echo(f"\r\x1b[2K{one_line(text)[: max(width - 3, 1)]} …", nl=False, err=True)
            self._status_shown = True

    def _clear_status(self) -> None:
        if self._status_shown:
            typer.echo("\r\x1b[2K", nl=False, err=True)
            self._status_shown = False
