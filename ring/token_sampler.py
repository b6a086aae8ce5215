"""The last stage's part of a ring: logits to tokens, drafts verified and new ones made. No sockets, no engine."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from cluster.openings import MOST_DRAFTS
from engines.engine import EngineError, FloatArray
from engines.sampler import sample
from ring.prompt_lookup import PromptLookup, accepted
from ring.sessions import StageSession
from ring.types import Sampled, Step


@dataclass(slots=True)
class DraftState:
    """What was guessed ahead for a session, and how."""

    lookup: PromptLookup
    drafts: tuple[int, ...] = ()


@dataclass(slots=True)
class TokenSampler:
    """Samples, and verifies drafts: a row that was computed for a draft counts while every draft before it came true.

    Sampling depends on logits, parameters and position only, and drafts are made only while every stage computes the
    `exact_rows` of a pass as it would each alone: so the tokens are those of a ring without drafts.
    """

    exact_rows: int = 1
    drafted: int = 0
    accepted: int = 0
    _guesses: dict[int, DraftState] = field(default_factory=dict)

    def open(self, session: StageSession) -> None:
        """Begin to guess what may follow the prompt."""
        if session.opening.drafts:
            self._guesses[session.session] = DraftState(PromptLookup(session.opening.prompt))

    def close(self, session: StageSession) -> None:
        """Forget a session."""
        self._guesses.pop(session.session, None)

    def wanted(self, step: Step) -> int:
        """Of how many of a step's rows the logits are needed. Raises EngineError where the rows are not the drafts'."""
        if not step.last:
            return 0
        if step.position < step.session.opening.prompt_tokens:
            return 1
        if len(step.inputs) != 1 + len(self._drafts(step.session)):
            raise EngineError(f"{len(step.inputs)} rows came where {1 + len(self._drafts(step.session))} were due")
        return len(step.inputs)

    def choose(self, step: Step, logits: FloatArray, in_batch: int) -> Sampled:
        """The tokens of one session, from logits (rows, vocab), and drafts for the next pass.

        Where `in_batch` sessions share a pass there are none: rows of others have their bits from all that are in it.
        Raises EngineError for logits that are not finite.
        """
        begun = time.monotonic_ns()
        session, opening = step.session, step.session.opening
        drafts = self._drafts(session) if len(logits) > 1 else ()
        position = step.end - len(logits) + 1
        tokens = self._sampled(session, position, logits, drafts)
        finished = bool(opening.finish_reason(tokens[-1], position + len(tokens) - 1 - opening.prompt_tokens))
        left = opening.max_tokens - (position + len(tokens) - opening.prompt_tokens)
        limit = 0 if finished or in_batch > 1 else min(left - 1, self.exact_rows - 1, opening.drafts, MOST_DRAFTS)
        proposed = self._propose(session, tokens, drafts, limit)
        rollback = len(tokens) <= len(drafts)
        spent = step.spent_ns + time.monotonic_ns() - begun
        return Sampled(session, position, tokens, proposed, rollback, finished, spent)

    def _drafts(self, session: StageSession) -> tuple[int, ...]:
        guess = self._guesses.get(session.session)
        return guess.drafts if guess else ()

    def _sampled(self, session: StageSession, position: int, logits: FloatArray, drafts: tuple[int, ...]) -> list[int]:
        """One token, and one more for every draft that came true; none after the session's last."""
        tokens: list[int] = []
        for at, row in enumerate(logits):
            token = sample(row, session.opening.sampling, position + at)
            tokens.append(token)
            index = position + at - session.opening.prompt_tokens
            if token not in drafts[at : at + 1] or session.opening.finish_reason(token, index):
                break
        return tokens

    def _propose(
        self, session: StageSession, tokens: list[int], drafts: tuple[int, ...], limit: int
    ) -> tuple[int, ...]:
        guess = self._guesses.get(session.session)
        if guess is None:
            return ()
        true = accepted(drafts, tokens)
        self.drafted += len(drafts)
        self.accepted += true
        guess.lookup.verified(len(drafts), true)
        guess.lookup.extend(tokens)
        guess.drafts = guess.lookup.propose(limit) if limit > 0 else ()
        return guess.drafts
