"""Guesses at the next tokens of a text, from the text itself, so that one pass through a ring can yield several.

Answers repeat their prompt and themselves: code, names, tables, quotations. So what followed the latest earlier
occurrence of the last few tokens is proposed as what follows now (A. Saxena, "Prompt Lookup Decoding", 2023; the
copying across the end of the text is that of J. Ziv and A. Lempel, 1977). The ring computes the drafts along with the
token, and keeps those that the sampler chooses as well (speculative decoding: Y. Leviathan et al., 2023); the text is
the same with and without.

A draft that is rejected costs time: `row_cost` of a pass. How many are proposed depends on how many of the last ones
were accepted, and on an account that is never overdrawn: at any moment, whatever the text, passes and rows together
have cost at most 1 / 0.97 of what one pass per token would have.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.openings import MAX_DRAFTS

MATCHES = (4, 3, 2)  # tokens at the end of the text that must have occurred before, longest first
SPEED_FLOOR = 0.97  # of plain decoding, whatever the text
ALLOWANCE = 1 / SPEED_FLOOR - 1  # passes that each token may waste
MAX_CREDIT = 4.0  # passes: what accepted drafts of long ago may pay for now
ASSUMED_CHANCE = 0.5  # that a draft is right, before any was tried
NEWEST_WEIGHT = 0.1  # of the newest draft in that chance
MIN_PAUSE = 4  # tokens before another try while drafts do not pay; doubled with each failure
MAX_PAUSE = 64


def accepted(drafts: Sequence[int], sampled: Sequence[int]) -> int:
    """Return how many leading drafts are what was sampled in their place."""
    for count, (draft, token) in enumerate(zip(drafts, sampled, strict=False)):
        if draft != token:
            return count
    return min(len(drafts), len(sampled))


def most_worthwhile(chance: float, row_cost: float, limit: int) -> int:
    """Return the number of drafts, 0 to `limit`, with the most tokens for the time if each is right with `chance`.

    A draft counts only if all before it are right: n drafts yield 1 + chance + ... + chance^n tokens for the cost
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
        self._chances = dict.fromkeys(MATCHES, ASSUMED_CHANCE)  # by the length of the match
        self._credit = 0.0  # passes that may be wasted
        self._pause = MIN_PAUSE
        self._rested = 0  # tokens since drafts were verified

    def count(self, match: int, limit: int) -> int:
        """Return how many drafts to propose after a match of that length, at most `limit`."""
        limit = min(limit, MAX_DRAFTS)
        # If no draft pays, try one now and then, as the text may have changed; none if even a right one would not pay.
        probe = int(self._rested >= self._pause and self._row_cost < 1)
        wanted = most_worthwhile(self._chances[match], self._row_cost, limit) or min(probe, limit)
        return next((count for count in range(wanted, 0, -1) if count * self._row_cost <= self._credit), 0)

    def earn(self, tokens: int) -> None:
        """Add to the account for tokens that were added to the text."""
        self._rested += tokens
        self._credit = min(self._credit + tokens * ALLOWANCE, MAX_CREDIT)

    def learn(self, match: int, proposed: int, right: int) -> None:
        """Learn that of `proposed` drafts after a match of that length, the first `right` were right."""
        self._rested = 0
        self._credit = min(self._credit + right - proposed * self._row_cost, MAX_CREDIT)
        self._pause = MIN_PAUSE if right else min(2 * self._pause, MAX_PAUSE)
        for outcome in (1.0,) * right + (0.0,) * (right < proposed):
            self._chances[match] += NEWEST_WEIGHT * (outcome - self._chances[match])


class PromptLookup:
    """The text of one session so far, and where its last few tokens occurred before.

    `row_cost`: a draft's share of the cost of a pass. The index takes about 350 bytes a token.
    """

    def __init__(self, prompt: Sequence[int], row_cost: float = 0.25) -> None:
        self._text = list(prompt)
        self._budget = DraftBudget(row_cost)
        self._match = MATCHES[-1]  # the length of the match behind the last proposal
        self._after = {length: _after_each(self._text, length) for length in MATCHES}

    def extend(self, tokens: Sequence[int]) -> None:
        """Add the tokens that were generated: the drafts that were right, and the sampler's own."""
        for token in tokens:  # what ends before a token is indexed only now, as only now something follows it
            end = len(self._text)
            for length in MATCHES:
                if length <= end:
                    self._after[length][tuple(self._text[-length:])] = end
            self._text.append(token)
        self._budget.earn(len(tokens))

    def propose(self, limit: int) -> tuple[int, ...]:
        """Return at most `limit` tokens that may follow; none if nothing matches or no draft is worth its cost."""
        for length in MATCHES:
            start = self._after[length].get(tuple(self._text[-length:]))
            if start is not None:
                self._match = length
                count = self._budget.count(length, limit)
                found = self._text[start : start + count]  # past the end of the text, the copy continues with itself
                return tuple(found[at % len(found)] for at in range(count))
        return ()

    def verified(self, proposed: int, accepted: int) -> None:
        """Learn that of the drafts proposed last `proposed` were computed and the first `accepted` were right.

        With 0 proposed nothing is learned. Raises ValueError for more accepted than proposed.
        """
        if not 0 <= accepted <= proposed:
            raise ValueError(f"{accepted} of {proposed} drafts cannot have been right")
        if proposed:
            self._budget.learn(self._match, proposed, accepted)


def _after_each(text: Sequence[int], length: int) -> dict[tuple[int, ...], int]:
    """Return, for each run of `length` tokens that something follows, the position after its latest occurrence."""
    runs = zip(*(text[start:] for start in range(length)), strict=False)
    return dict(zip(runs, range(length, len(text)), strict=False))
