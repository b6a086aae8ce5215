"""The tokens of a session as its gateway accepted them."""

from __future__ import annotations

from dataclasses import dataclass, field


class TokenGap(Exception):
    """A token came and the ones before it did not."""


@dataclass(slots=True)
class TokenLog:
    """Each token once, in order. Indices count from 0, which is the token at the opening's `first_position`."""

    tokens: list[int] = field(default_factory=list)

    def accept(self, index: int, token: int) -> bool:
        """Append the next token and return True; return False for one that is here already. Raises TokenGap."""
        if index < len(self.tokens):
            return False
        if index > len(self.tokens):
            raise TokenGap(f"token {index} came instead of {len(self.tokens)}")
        self.tokens.append(token)
        return True
