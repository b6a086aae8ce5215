"""The tokens of a session as its gateway accepted them: each index once, in order. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field


class TokenGap(Exception):
    """A token came whose predecessors did not."""


@dataclass(slots=True)
class TokenLog:
    """The tokens of a session as its owner accepted them: each index once, in order."""

    tokens: list[int] = field(default_factory=list)

    def accept(self, index: int, token: int) -> bool:
        """True for the next token, False for one that we have already. Raises TokenGap."""
        if index < len(self.tokens):
            return False
        if index > len(self.tokens):
            raise TokenGap(f"token {index} came where {len(self.tokens)} was due")
        self.tokens.append(token)
        return True
