"""Control tokens in what users write: found, hidden while a chat template is rendered, and read as the text they are.

A tokenizer makes one id of a control token wherever its text stands, so that a user could end a turn by writing one
and begin another. So a private-use character stands in for each that a user wrote. What is a control token in the
rendered prompt then comes from the template. Knows the texts of control tokens, but no ids.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from models.errors import TokenizerError

_PRIVATE_USE = range(0xF0000, 0xFFFFE)
_NOTHING = "(?!)"  # the pattern that matches nothing
_REPLACEMENT = "\ufffd"
_ZERO_WIDTH_SPACE = "\u200b"

_Trie = dict[str, "_Trie"]


class ControlTokens:
    """The texts of a tokenizer's control tokens. As in a tokenizer, the first one in a text counts, and the longest.

    Raises TokenizerError if hundreds of them begin with each other, which no maker of a model does.
    """

    def __init__(self, texts: Iterable[str]) -> None:
        root: _Trie = {}
        for text in filter(None, texts):
            node = root
            for character in text:
                node = node.setdefault(character, {})
            node[""] = {}
        try:
            self._pattern = re.compile(f"({_pattern(root) if root else _NOTHING})")
        except RecursionError:
            raise TokenizerError(
                "the model's control tokens begin with each other too often; use another model"
            ) from None

    def replace(self, text: str, change: Callable[[str], str]) -> str:
        """Return a text with each control token changed."""
        return self._pattern.sub(lambda match: change(match[0]), text)

    def split(self, text: str) -> list[str]:
        """Cut a text into other text, at even places, and control tokens, at odd ones."""
        return self._pattern.split(text)

    def stand_ins(self, value: Any) -> StandIns:
        """Choose a character for each control token in the texts of a JSON value. None of them occurs in the value."""
        texts = list(_texts(value))
        found = dict.fromkeys(match[0] for text in texts for match in self._pattern.finditer(text))
        used = set().union(*texts) if found else set()
        free = (chr(code) for code in _PRIVATE_USE if chr(code) not in used)
        return StandIns({token: next(free, _REPLACEMENT) for token in found}, self)


@dataclass(frozen=True, slots=True)
class StandIns:
    """The control tokens that users wrote, each with the character that stands in for it. False if there are none."""

    characters: Mapping[str, str]
    control_tokens: ControlTokens

    def __bool__(self) -> bool:
        return bool(self.characters)

    def hide(self, value: Any) -> Any:
        """Return a JSON value with a character in place of each control token in its texts."""
        return self._each_token(value, self.characters.__getitem__)

    def spoil(self, value: Any) -> Any:
        """Return a JSON value in which control tokens are none any more: zero-width spaces divide them."""
        return self._each_token(value, lambda token: _ZERO_WIDTH_SPACE.join(token) if len(token) > 1 else _REPLACEMENT)

    def restore(self, text: str) -> str:
        """Put the control tokens back into a text."""
        return text.translate({ord(character): token for token, character in self.characters.items()})

    def _each_token(self, value: Any, change: Callable[[str], str]) -> Any:
        return _mapped(value, lambda text: self.control_tokens.replace(text, change))


def _pattern(node: _Trie) -> str:
    """Make the pattern of what is below a node, longer texts first. Their number does not matter for its time."""
    chain = ""
    while len(node) == 1 and "" not in node:
        ((character, node),) = node.items()
        chain += re.escape(character)
    branches = [re.escape(character) + _pattern(below) for character, below in node.items() if character]
    return chain + (f"(?:{'|'.join(branches)})" + "?" * ("" in node) if branches else "")


def _texts(value: Any) -> Iterator[str]:
    """List the texts of a JSON value, those of keys as well."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield key
            yield from _texts(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    """Return a JSON value with every text changed, those of keys as well."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {change(key): _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_mapped(inner, change) for inner in value]
    return value
