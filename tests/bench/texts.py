"""The gain of drafts and the prefix cache on real text: the default model on a node as a user starts it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import median

from models.tokenizers.tokenizer import Tokenizer
from tests.bench.figures import Figure
from tests.bench.ours import ring_of_nodes
from tests.bench.streams import StreamResult, Streams
from tests.support.models import default_model_path

ROOT = Path(__file__).resolve().parent.parent.parent
DRAFTS = 8
PLAIN = 200  # prompts that were not chosen for repetitions
PLAIN_PROMPT, PLAIN_TOKENS = 48, 24
CODE_PROMPT, CODE_TOKENS = 400, 128
FIRST_TURN, SECOND_TURN = 1024, 64
ROUNDS = 5

EDIT = "Here is a text:\n\n{text}\n\nHere is the same text again, with its mistakes corrected:\n\n"
SUMMARY = "Here is a text:\n\n{text}\n\nHere are its sentences as a list, each word for word:\n\n- "


def measure() -> list[Figure]:
    """Measure tokens per pass on repeating text, speed on other text, equality of tokens, and a second turn's start."""
    tokenizer = Tokenizer.load(default_model_path().parent)
    with ring_of_nodes(1, "fast") as (_, streams):
        streams.generate(tuple(range(100, 132)), 8)
        plain = [_both(streams, prompt, PLAIN_TOKENS) for prompt in _plain(tokenizer)]
        repeating = [_both(streams, prompt, CODE_TOKENS) for prompt in _repeating(tokenizer)]
        turns = [_turns(streams, tokenizer, seed) for seed in range(ROUNDS)]
    return [*_draft_figures(plain, repeating), _prefix_figure(turns)]


def _draft_figures(
    plain: Sequence[tuple[StreamResult, StreamResult]], repeating: Sequence[tuple[StreamResult, StreamResult]]
) -> list[Figure]:
    every = [*plain, *repeating]
    equal = sum(without.ids == drafted.ids for without, drafted in every)
    passes = [len(drafted.tokens) / drafted.passes for _, drafted in repeating]
    gain = (
        f"{_speed(repeating):.2f} × the speed; {min(passes):.2f} to {max(passes):.2f} a pass over {len(passes)} texts"
    )
    return [
        Figure("lookup_tokens_per_pass", median(passes), "tokens", "≥ 1.5", baseline=1.0, note=gain),
        Figure(
            "lookup_speed", _speed(plain), "ratio", "≥ 0.97", note=f"{len(plain)} prompts that do not ask to repeat"
        ),
        Figure(
            "lookup_equal", equal / len(every), "share", "1", note=f"{equal} of {len(every)} texts are the same without"
        ),
    ]


def _prefix_figure(turns: Sequence[tuple[StreamResult, StreamResult]]) -> Figure:
    cold, warm = (median(_first_token_s(received) for received in side) for side in zip(*turns, strict=True))
    share = SECOND_TURN / (FIRST_TURN + SECOND_TURN)
    note = f"first token after {warm:.3f} s with, {cold:.3f} s without; {share:.3f} of the prompt is new"
    return Figure("prefix_ttft", warm / cold, "ratio", f"≤ {share + 0.1:.3f}", floor=share, note=note)


def _both(streams: Streams, prompt: Sequence[int], tokens: int) -> tuple[StreamResult, StreamResult]:
    """Generate without drafts and with them. A first, unmeasured session leaves both the same prompt to compute."""
    _generate(streams, prompt, 1, 0)
    return _generate(streams, prompt, tokens, 0), _generate(streams, prompt, tokens, DRAFTS)


def _generate(streams: Streams, prompt: Sequence[int], tokens: int, drafts: int) -> StreamResult:
    session = streams.open(prompt, tokens, drafts)
    received = streams.received(session)
    streams.receive(received)
    streams.end(session)
    return received


def _turns(streams: Streams, tokenizer: Tokenizer, seed: int) -> tuple[StreamResult, StreamResult]:
    """Compute two prompts of one length: one that is new, and one of which only the second turn is new."""
    text = tokenizer.encode("".join(path.read_text() for path in _sources()))
    length = FIRST_TURN + SECOND_TURN
    unknown = text[seed * 2 * length :][:length]
    begun = text[(seed * 2 + 1) * length :][:length]
    cold = _generate(streams, unknown, 1, 0)
    _generate(streams, begun[:FIRST_TURN], 1, 0)
    return cold, _generate(streams, begun, 1, 0)


def _speed(pairs: Sequence[tuple[StreamResult, StreamResult]]) -> float:
    """Return how many times as fast decoding is with drafts as without, all texts together."""
    without, drafted = (sum(_decode_s(received) for received in side) for side in zip(*pairs, strict=True))
    return without / drafted


def _decode_s(received: StreamResult) -> float:
    return (received.tokens[-1].at_ns - received.tokens[0].at_ns) / 1e9


def _first_token_s(received: StreamResult) -> float:
    return (received.tokens[0].at_ns - received.opened_ns) / 1e9


def _plain(tokenizer: Tokenizer) -> list[list[int]]:
    """Return prompts cut from this project's own prose and code, none of which asks for a repetition."""
    text = tokenizer.encode("".join(path.read_text() for path in (*prose(), *_sources())))
    step = len(text) // PLAIN
    return [text[at : at + PLAIN_PROMPT] for at in range(0, PLAIN * step, step)]


def _repeating(tokenizer: Tokenizer) -> list[list[int]]:
    """Return prompts with continuations that repeat them: code to continue, and texts to edit and to list."""
    code = [tokenizer.encode(path.read_text())[:CODE_PROMPT] for path in _sources()[:4]]
    paragraphs = [part for path in prose() for part in path.read_text().split("\n\n") if 300 < len(part) < 700][:4]
    asked = [form.format(text=text) for text in paragraphs for form in (EDIT, SUMMARY)]
    return [*code, *(tokenizer.encode(text) for text in asked)]


def prose() -> list[Path]:
    """Return the files of this project's prose that prompts are cut from."""
    return [ROOT / "docs" / "design.md", ROOT / "README.md"]


def _sources() -> list[Path]:
    return sorted((ROOT / "actors").glob("*.py"), key=lambda path: -path.stat().st_size)
