"""Guesses at the next tokens of a text, from the text itself, so that one pass through a ring can yield several.

Answers repeat their prompt and themselves: code, names, tables, quotations. So what followed the latest earlier
occurrence of the last few tokens is proposed as what follows now (A. Saxena, "Prompt Lookup Decoding", 2023; the
copying across the end of the text is that of J. Ziv and A. Lempel, 1977). The ring computes the drafts along with the
token, and keeps those that the sampler chooses as well (speculative decoding: Y. Leviathan et al., 2023); the text is
the same with and without.

A draft that fails costs time: `row_cost` of a pass. How many are proposed is decided by what the last ones were worth,
and by an account that is never overdrawn: at any moment, whatever the text, passes and rows together have cost at
most 1 / 0.97 of what one pass a token would have.

No arrays, no sockets, no clock: the sampler's tokens are handed in.
"""

from __future__ import annotations

from collections.abc import Sequence

MATCHES = (4, 3, 2)  # tokens at the end of the text that must have occurred before, longest first
MOST = 8  # drafts in one pass
SPEED_FLOOR = 0.97  # of plain decoding, whatever the text
ALLOWANCE = 1 / SPEED_FLOOR - 1  # passes that each token may waste
MOST_CREDIT = 4.0  # passes: what successes long ago entitle to waste now
FIRST_GUESS = 0.5  # of the chance that a draft is right, before any was tried
NEWEST_WEIGHT = 0.1  # of the newest draft in that chance
SHORTEST_PAUSE = 4  # tokens before another try where drafts do not pay; doubled with each failure
LONGEST_PAUSE = 64


def accepted(drafts: Sequence[int], sampled: Sequence[int]) -> int:
    """How many leading drafts are what was sampled in their place."""
    for count, (draft, token) in enumerate(zip(drafts, sampled, strict=False)):
        if draft != token:
            return count
    return min(len(drafts), len(sampled))


def most_worthwhile(chance: float, row_cost: float, limit: int) -> int:
    """The number of drafts, 0 to `limit`, that yields the most tokens for the time where each is right with `chance`.

    A draft counts only where all before it are right: n drafts yield 1 + chance + ... + chance^n tokens for the cost
    of 1 + n x row_cost passes.
    """
    best, best_rate = 0, 1.0
    tokens = reached = 1.0
    for count in range(1, limit + 1):
        reached *= chance
        tokens += reached
        rate = tokens / (1 + count * row_cost)
        if rate > best_rate:
            best, best_rate = count, rate
    return best


class DraftBudget:
    """How many drafts are worth their cost, learned from those that were verified.

    `row_cost` is what each draft adds to a pass, as a share of the pass without.
    """

    def __init__(self, row_cost: float) -> None:
        if not row_cost >= 0:
            raise ValueError(f"a row cannot cost {row_cost} passes")
        self._row_cost = row_cost
        self._chances = dict.fromkeys(MATCHES, FIRST_GUESS)  # by the length of the match
        self._credit = 0.0  # passes that may be wasted
        self._pause = SHORTEST_PAUSE
        self._rested = 0  # tokens since drafts were verified

    def count(self, match: int, limit: int) -> int:
        """How many drafts to propose after a match of that length, at most `limit`."""
        limit = min(limit, MOST)
        wanted = most_worthwhile(self._chances[match], self._row_cost, limit) or min(self._probe(), limit)
        return next((count for count in range(wanted, 0, -1) if count * self._row_cost <= self._credit), 0)

    def gained(self, tokens: int) -> None:
        """So many tokens were added to the text."""
        self._rested += tokens
        self._credit = min(self._credit + tokens * ALLOWANCE, MOST_CREDIT)

    def verified(self, match: int, proposed: int, right: int) -> None:
        """Of `proposed` drafts after a match of that length, the first `right` were right."""
        self._rested = 0
        self._credit = min(self._credit + right - proposed * self._row_cost, MOST_CREDIT)
        self._pause = SHORTEST_PAUSE if right else min(2 * self._pause, LONGEST_PAUSE)
        for outcome in (1.0,) * right + (0.0,) * (right < proposed):
            self._chances[match] += NEWEST_WEIGHT * (outcome - self._chances[match])

    def _probe(self) -> int:
        """One draft now and then, as the text may have changed; none where even a right one would not pay."""
        return int(self._rested >= self._pause and self._row_cost < 1)


class PromptLookup:
    """The text of one session so far, and where its last few tokens occurred before.

    `row_cost`: a draft's share of the cost of a pass. The index takes about 350 bytes a token.
    """

    def __init__(self, prompt: Sequence[int], row_cost: float = 0.25) -> None:
        self._text = list(prompt)
        self._appetite = DraftBudget(row_cost)
        self._match = MATCHES[-1]  # the length of the match behind the last proposal
        self._after = {length: _after_each(self._text, length) for length in MATCHES}

    def extend(self, tokens: Sequence[int]) -> None:
        """These tokens were generated: the drafts that were right among them, and the sampler's own."""
        for token in tokens:
            self._add(token)
        self._appetite.gained(len(tokens))

    def propose(self, limit: int) -> tuple[int, ...]:
        """At most `limit` tokens that may follow the text; none where nothing matches or nothing is worth its cost."""
        for length in MATCHES:
            start = self._after[length].get(tuple(self._text[-length:]))
            if start is not None:
                self._match = length
                return self._copy(start, self._appetite.count(length, limit))
        return ()

    def verified(self, proposed: int, accepted: int) -> None:
        """Learn that of the drafts proposed last `proposed` went through the ring and the first `accepted` were right.

        With 0 proposed nothing is learned. Raises ValueError for more accepted than proposed.
        """
        if not 0 <= accepted <= proposed:
            raise ValueError(f"{accepted} of {proposed} drafts cannot have been right")
        if proposed:
            self._appetite.verified(self._match, proposed, accepted)

    def _add(self, token: int) -> None:
        """The tokens before this one are indexed only now, as only now something follows them."""
        end = len(self._text)
        for length in MATCHES:
            if length <= end:
                self._after[length][tuple(self._text[-length:])] = end
        self._text.append(token)

    def _copy(self, start: int, count: int) -> tuple[int, ...]:
        """`count` tokens from `start` on; at the end of the text it goes on with what was copied."""
        found = self._text[start : start + count]
        return tuple(found[at % len(found)] for at in range(count))


def _after_each(text: Sequence[int], length: int) -> dict[tuple[int, ...], int]:
    """For each run of `length` tokens that something follows, the position after its latest occurrence."""
    runs = zip(*(text[start:] for start in range(length)), strict=False)
    return dict(zip(runs, range(length, len(text)), strict=False))
