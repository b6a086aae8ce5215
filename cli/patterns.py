"""Patterns over dotted kinds, as NATS has them: `*` stands for one word, `>` for one or more at the end. Pure."""

from __future__ import annotations

TAP = "tap."


def check(pattern: str) -> None:
    """Raises ValueError with a sentence for a pattern that can match nothing."""
    words = pattern.split(".")
    if not all(words) or ">" in words[:-1]:
        raise ValueError(
            f"{pattern!r} is no pattern; write words, `*` and a last `>` with dots between, such as 'session.*'"
        )


def literal_prefix(pattern: str) -> str:
    """What every kind that matches begins with: the topic to subscribe to."""
    words: list[str] = []
    for word in pattern.split("."):
        if word in ("*", ">"):
            return ".".join(words) + "." * bool(words)
        words.append(word)
    return pattern


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic matches. Work that passes the hub lies under `tap.`, and is asked for by that word only."""
    if topic.startswith(TAP) and not pattern.startswith(TAP):
        return False
    wanted, words = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(words) <= len(wanted):
            return False
        words = words[: len(wanted)]
    return len(wanted) == len(words) and all(want in ("*", word) for want, word in zip(wanted, words, strict=True))
