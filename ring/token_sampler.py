"""What only the last stage of a ring does: logits to tokens, drafts verified and new ones made, tokens sent to the
gateway and round the ring.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from cluster.openings import MAX_DRAFTS
from engines.engine import FloatArray
from engines.errors import EngineError
from engines.sampler import sample
from ring.frame_writer import OutgoingArray
from ring.model_runner import Computed
from ring.prefix_cache import CacheUpdate
from ring.prompt_lookup import PromptLookup, accepted
from ring.roles import OutputRole
from ring.sessions import StageSession
from ring.stage import Stage
from ring.steps import SampledTokens, Step


@dataclass(slots=True)
class DraftState:
    """The text of a session so far, and the drafts that its next step computes."""

    lookup: PromptLookup
    drafts: tuple[int, ...] = ()


class TokenSampler(OutputRole):
    """The last stage's output. A row that was computed for a draft counts if every draft before it was right.

    Sampling depends on logits, parameters and position only, and drafts are made only while every stage computes the
    ring's `exact_rows` of a pass as it would each alone: so the tokens are those of a ring without drafts.
    """

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._exact_rows = stage.ring.exact_rows
        self._states: dict[int, DraftState] = {}

    def logits_wanted(self, step: Step) -> int:
        """Return of how many of a step's last rows the logits are wanted. Raises EngineError unless a decode step has
        one row and one for each draft.
        """
        if not step.samples:
            return 0
        if step.position < step.session.opening.first_position:
            return 1
        due = 1 + len(self._drafts(step.session))
        if len(step.inputs) != due:
            raise EngineError(f"{len(step.inputs)} rows came instead of {due}")
        return due

    def started(self, session: StageSession, cached: int) -> None:
        """Begin to look for drafts, and report the admission to the gateway.

        The last stage reports it, though the first one admitted the session: the tokens come over the same connection,
        so the admission always arrives before them.
        """
        if session.opening.drafts:
            self._states[session.id] = DraftState(PromptLookup(session.opening.prompt))
        self._stage.frames.send_admission(session, cached)

    def store(self, session_id: int, update: CacheUpdate) -> bool:
        """Return True: no stage comes after this one."""
        return True

    def closed(self, session: StageSession) -> None:
        """Forget the drafts, and pass the CLOSE on to the first stage."""
        self._states.pop(session.id, None)
        self._stage.frames.send_close(session, self._stage.ring.next_endpoint)

    def deliver(self, computed: list[Computed]) -> None:
        """Sample a token for each session that is due; send tokens round the ring, and then to the gateways.

        The tokens that continue in the ring are one micro-batch again, so `rest` counts them.
        """
        stage, frames = self._stage, self._stage.frames
        due = [(step, logits) for step, logits in computed if step.samples]
        attempts = [stage.attempt([step.session], self.sample_step, step, logits, len(due)) for step, logits in due]
        sampled = [tokens for tokens in attempts if tokens]
        rest = sum(not tokens.finished for tokens in sampled)
        for tokens in sampled:
            if not tokens.finished:
                rest -= 1
                self._send_to_first(tokens.session, frames.ring_token(tokens, rest))
        for tokens in sampled:
            if tokens.finished:  # before the gateway knows and sends CLOSE, so that the first stage stores the answer
                self._send_to_first(tokens.session, frames.ring_token(tokens, rest=0))
            stage.send(tokens.session, frames.gateway_tokens(tokens))
        for step, _ in computed:
            if not step.samples:
                self._send_to_first(step.session, frames.computed(step))

    def _send_to_first(self, session: StageSession, outgoing: OutgoingArray) -> None:
        self._stage.send(session, outgoing)

    def sample_step(self, step: Step, logits: FloatArray, in_batch: int) -> SampledTokens:
        """Return the tokens of one session, from logits (rows, vocab), and drafts for its next step.

        If `in_batch` sessions share a pass there are no drafts: the bits of a row depend on the number of all rows in
        the pass. Raises EngineError for logits that are not finite.
        """
        begun = time.monotonic_ns()
        session, opening = step.session, step.session.opening
        drafts = self._drafts(session) if len(logits) > 1 else ()
        position = step.end - len(logits) + 1
        tokens, finished = _sample_rows(session, position, logits, drafts)
        session.sampled = position + len(tokens)
        left = opening.max_tokens - (position + len(tokens) - opening.first_position)
        limit = 0 if finished or in_batch > 1 else min(left - 1, self._exact_rows - 1, opening.drafts, MAX_DRAFTS)
        proposed = self._propose(session, tokens, drafts, limit)
        rollback = len(tokens) <= len(drafts)
        compute_ns = step.compute_ns + time.monotonic_ns() - begun
        return SampledTokens(session, position, tokens, proposed, rollback, finished, compute_ns)

    def _drafts(self, session: StageSession) -> tuple[int, ...]:
        state = self._states.get(session.id)
        return state.drafts if state else ()

    def _propose(
        self, session: StageSession, tokens: list[int], drafts: tuple[int, ...], limit: int
    ) -> tuple[int, ...]:
        """Learn from the drafts of the step, and return those of the next one."""
        state = self._states.get(session.id)
        if state is None:
            return ()
        right = accepted(drafts, tokens)
        self.drafted += len(drafts)
        self.accepted += right
        state.lookup.verified(len(drafts), right)
        state.lookup.extend(tokens)
        state.drafts = state.lookup.propose(limit) if limit > 0 else ()
        return state.drafts


class LoneTokenSampler(TokenSampler):
    """The output of a ring's only stage: the first stage is this one, and there is no other to pass a CLOSE on to."""

    def closed(self, session: StageSession) -> None:
        """Forget the drafts."""
        self._states.pop(session.id, None)

    def _send_to_first(self, session: StageSession, outgoing: OutgoingArray) -> None:
        _, frame, tokens = outgoing
        if session.id in self._stage.sessions.by_id:
            self._stage.attempt([session], self._stage.input.receive, session, frame, tokens)


def _sample_rows(
    session: StageSession, position: int, logits: FloatArray, drafts: tuple[int, ...]
) -> tuple[list[int], bool]:
    """Return one token, and one more for every draft that was right, and whether the session ends with the last."""
    tokens: list[int] = []
    for at, row in enumerate(logits):
        token = sample(row[: session.opening.vocabulary or None], session.opening.sampling, position + at)
        tokens.append(token)
        if session.opening.finish_reason(token, position + at - session.opening.first_position):
            return tokens, True
        if token not in drafts[at : at + 1]:
            break
    return tokens, False
