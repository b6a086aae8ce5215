"""Patterns over dotted kinds, as in NATS: `*` stands for one word, `>` for one or more at the end."""

from __future__ import annotations

TAP = "tap."
FREQUENT = "tap.actor.hello"  # sent once a second by every actor, so a wildcard in place of `actor` leaves it out


def check_pattern(pattern: str) -> None:
    """Check the form of a pattern. Raises ValueError with a sentence if it cannot match anything."""
    words = pattern.split(".")
    if not all(words) or ">" in words[:-1]:
        raise ValueError(
            f"{pattern!r} is not a pattern; write words, `*` and a last `>` with dots between, such as 'session.*'"
        )


def literal_prefix(pattern: str) -> str:
    """Return the text that every matching kind begins with: the topic to subscribe to."""
    words: list[str] = []
    for word in pattern.split("."):
        if word in ("*", ">"):
            return ".".join(words) + "." * bool(words)
        words.append(word)
    return pattern


def matches(pattern: str, topic: str) -> bool:
    """Return whether a topic matches. Work that passes the hub is under `tap.`, which only that word matches."""
    if topic.startswith(TAP) and not pattern.startswith(TAP):
        return False
    if topic == FREQUENT and not pattern.startswith("tap.actor."):
        return False
    wanted, words = pattern.split("."), topic.split(".")
    if wanted[-1] == ">":
        wanted.pop()
        if len(words) <= len(wanted):
            return False
        words = words[: len(wanted)]
    return len(wanted) == len(words) and all(want in ("*", word) for want, word in zip(wanted, words, strict=True))
