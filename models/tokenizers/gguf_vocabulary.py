"""A `tokenizers` tokenizer from the metadata of a GGUF file. Reads no file.

The rules are llama.cpp's (`src/llama-vocab.cpp`), which defines the format. What is not known is refused: a tokenizer
that is nearly right gives wrong answers and no error.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import tokenizers
from gguf import Keys, TokenType
from msgspec import NODEFAULT
from tokenizers import AddedToken, decoders, normalizers
from tokenizers.models import BPE

from models.errors import TokenizerError
from models.tokenizers.pre_tokenizers import SPLIT_RULES, SplitRule
from models.tokenizers.tokenizer import END_OF_TURN

_SPACE = "\u2581"
_ADDED = (TokenType.CONTROL, TokenType.USER_DEFINED)
_NOT_MERGED = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.BYTE)


def _key(key: str, default: Any = NODEFAULT) -> Any:
    return msgspec.field(name=key, default=default)


class _Fields(msgspec.Struct):
    """What the metadata says of the tokenizer."""

    kind: str = _key(Keys.Tokenizer.MODEL)
    tokens: list[str] = _key(Keys.Tokenizer.LIST)
    types: list[int] = _key(Keys.Tokenizer.TOKEN_TYPE, ())
    scores: list[float] = _key(Keys.Tokenizer.SCORES, ())
    merges: list[str] = _key(Keys.Tokenizer.MERGES, ())
    split: str | None = _key(Keys.Tokenizer.PRE, None)
    begins_with_space: bool | None = _key(Keys.Tokenizer.ADD_PREFIX, None)
    bos: int | None = _key(Keys.Tokenizer.BOS_ID, None)
    eos: int | None = _key(Keys.Tokenizer.EOS_ID, None)
    end_of_turn: int | None = _key(Keys.Tokenizer.EOT_ID, None)
    end_of_message: int | None = _key(Keys.Tokenizer.EOM_ID, None)
    unknown: int = _key(Keys.Tokenizer.UNK_ID, 0)

    def __post_init__(self) -> None:
        """Give each token a type, and drop those at the end that only pad the vocabulary.

        Converters call the token of the id 9 "[PAD9]" if the model has a row for it, but no text. Older ones do not
        say that it is unused.
        """
        types = [*self.types, *[TokenType.NORMAL] * len(self.tokens)][: len(self.tokens)]
        while types and (types[-1] == TokenType.UNUSED or self.tokens[len(types) - 1] == f"[PAD{len(types) - 1}]"):
            types.pop()
        self.types, self.tokens = types, self.tokens[: len(types)]


def build_vocabulary(metadata: Mapping[str, Any], where: Path) -> tokenizers.Tokenizer:
    """Build the tokenizer that the metadata of the file `where` describes. Raises TokenizerError."""
    try:
        fields = msgspec.convert(metadata, _Fields)
    except msgspec.ValidationError as error:
        raise TokenizerError(f"{where} holds no usable tokenizer ({error}); fetch another conversion of it") from error
    check_known(metadata, where)
    backend = _KINDS[fields.kind](fields, where)
    added = _added_tokens(fields)
    backend.add_special_tokens([token for token in added.values() if token.special])
    backend.add_tokens([token for token in added.values() if not token.special])
    for index, token in added.items():
        if backend.encode(token.content, add_special_tokens=False).ids != [index]:
            raise TokenizerError(
                f"{where} has a control token {token.content!r} that exobus cannot keep whole; use another model"
            )
    return backend


def check_known(metadata: Mapping[str, Any], where: Path) -> None:
    """Raise TokenizerError for a kind of vocabulary that is not known, and for an unknown rule that splits texts.

    The lists of the metadata are not looked at.
    """
    kind = metadata.get(Keys.Tokenizer.MODEL)
    if kind not in tuple(_KINDS):
        known = ", ".join(_KINDS)
        raise TokenizerError(
            f"{where} holds a tokenizer of the kind {str(kind)[:64]!r}, and exobus knows {known}, whatever the engine; "
            "use another model"
        )
    if kind == "gpt2":
        _split_rule(metadata.get(Keys.Tokenizer.PRE), where)


def _added_tokens(fields: _Fields) -> dict[int, AddedToken]:
    """Return by id the tokens that are found in a text before it is split. Those that decode to nothing are special.

    A token that begins a text, or ends a text or a turn, is special whatever its type says.
    """
    ends = {fields.bos, fields.eos, fields.end_of_turn, fields.end_of_message}
    ends |= {index for index, text in enumerate(fields.tokens) if text in END_OF_TURN}
    return {
        index: AddedToken(text, normalized=False, special=kind != TokenType.USER_DEFINED or index in ends)
        for index, (text, kind) in enumerate(zip(fields.tokens, fields.types, strict=True))
        if text and (kind in _ADDED or index in ends)
    }


def _byte_level(fields: _Fields, where: Path) -> tokenizers.Tokenizer:
    """Build a tokenizer with tokens spelled in the byte alphabet of GPT-2."""
    rule = _split_rule(fields.split, where)
    ids = _ids(fields.tokens, where)
    backend = _merging(ids, _stated_merges(fields.merges, where), where, ignore_merges=rule.whole_words)
    backend.pre_tokenizer = rule.pre_tokenizer()
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(fields: _Fields, where: Path) -> tokenizers.Tokenizer:
    """Build a tokenizer with tokens that write a space as U+2581, and what they lack as bytes.

    As in llama.cpp, a text begins with a space, and so does each text behind a control token, unless the file says no.
    Gemma 4's vocabulary states its merges and has no such space.
    """
    ids = _ids(fields.tokens, where)
    merges = _stated_merges(fields.merges, where) or _merges_by_score(fields, ids)
    begins_with_space = fields.kind == "llama" if fields.begins_with_space is None else fields.begins_with_space
    unknown = next((text for text, index in ids.items() if index == fields.unknown), None)
    backend = _merging(ids, merges, where, unk_token=unknown, fuse_unk=True, byte_fallback=True)
    prefix = [normalizers.Prepend(_SPACE)] if begins_with_space else []
    backend.normalizer = normalizers.Sequence([*prefix, normalizers.Replace(" ", _SPACE)])
    strip = [decoders.Strip(" ", 1, 0)] if begins_with_space else []
    backend.decoder = decoders.Sequence(
        [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return backend


def _merging(ids: dict[str, int], merges: list[tuple[str, str]], where: Path, **options: Any) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(BPE(vocab=ids, merges=merges, **options))
    except Exception as error:  # the library raises no narrower class
        raise TokenizerError(f"{where} has merges that do not fit its tokens ({error}); fetch it again") from error


def _ids(tokens: list[str], where: Path) -> dict[str, int]:
    """Map each text to its id. Raises TokenizerError if one comes twice."""
    ids: dict[str, int] = {}
    for index, text in enumerate(tokens):
        if text and ids.setdefault(text, index) != index:
            raise TokenizerError(f"{where} has two tokens {text!r}; fetch another conversion of this model")
    return ids


def _split_rule(name: Any, where: Path) -> SplitRule:
    """Find the rule of a byte-level vocabulary. Raises TokenizerError."""
    if name is None:
        raise TokenizerError(
            f"{where} does not say how its texts are split (tokenizer.ggml.pre); fetch a newer conversion of this model"
        )
    rule = SPLIT_RULES.get(str(name))
    if rule is None:
        raise TokenizerError(
            f"{where} splits texts by the rule {str(name)[:64]!r} (tokenizer.ggml.pre), which exobus does not know, "
            "whatever the engine; use the safetensors form of this model, or another model"
        )
    return rule


def _stated_merges(lines: Iterable[str], where: Path) -> list[tuple[str, str]]:
    """Split each merge at its first space behind the first character, which may be a space itself."""
    merges = []
    for line in lines:
        middle = line.find(" ", 1)
        if middle < 0:
            raise TokenizerError(f"{where} has a merge {line!r} without a space; fetch another conversion of it")
        merges.append((line[:middle], line[middle + 1 :]))
    return merges


def _merges_by_score(fields: _Fields, ids: dict[str, int]) -> list[tuple[str, str]]:
    """Return the pairs of tokens that make a token, best score first: SentencePiece merges what scores highest.

    No pair makes a control token or a byte: those do not come from a text.
    """
    known_scores = dict(enumerate(fields.scores))
    merges = []
    for text, index in sorted(ids.items(), key=lambda item: (-known_scores.get(item[1], 0.0), item[1])):
        if fields.types[index] in _NOT_MERGED:
            continue
        pairs = [(text[:cut], text[cut:]) for cut in range(1, len(text))]
        known = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
        merges += sorted(known, key=lambda pair: (ids[pair[0]], ids[pair[1]]))
    return merges


_KINDS = {"gpt2": _byte_level, "llama": _sentencepiece, "gemma4": _sentencepiece}
"""What builds each kind of vocabulary (`tokenizer.ggml.model`)."""
