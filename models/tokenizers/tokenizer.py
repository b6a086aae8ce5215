"""Text to token ids and back, with the files of a model folder. Knows no weights, and imports no numpy.

Special tokens of a prompt come from the chat template: `encode` adds none.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Self

import tokenizers

from models.card import SamplingDefaults
from models.config import parse_object
from models.errors import TemplateError, TokenizerError
from models.generation_config import end_ids, sampling_defaults
from models.templates.chat_template import MAX_SOURCE_BYTES, ChatTemplate
from models.tokenizers.control_tokens import ControlTokens, StandIns
from models.tokenizers.plain_encoding import PlainEncoder, StandInTokenizer

TOKENIZER_FILE = "tokenizer.json"
SETTINGS_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
PROCESSOR_TEMPLATE_FILE = "chat_template.json"  # of models that also see images
GENERATION_FILE = "generation_config.json"
_MAX_FILE_BYTES = 128 << 20
END_OF_TURN = (
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<|eot|>",
    "<|EOT|>",
    "<|end|>",
    "<|return|>",
    "<|end_of_turn|>",
    "<|END_OF_TURN_TOKEN|>",
    "<end_of_turn>",
    "<end_of_utterance>",
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
"""Tokens that end a turn in the families of models that have them."""

MAX_ENDS = 128
MAX_HELD = 64  # replacement characters: those of a character that is not complete yet are fewer
_IDS = 1 << 31  # more than any model has
_REPLACEMENT = "\ufffd"


class Tokenizer:
    """A model's tokenizer, with the ids that end an answer and the chat template if the model has one.

    `vocabulary` is the number of ids up to the highest that has a text; a model may have rows beyond it. `sampling` is
    what the model's files recommend, if they do.
    """

    expansion = 1
    """The most characters that one character of a text is encoded as."""

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        eos_token_ids: Iterable[int],
        chat_template: ChatTemplate | None,
        sampling: SamplingDefaults | None = None,
    ) -> None:
        self._backend = backend
        self._plain_encoder = PlainEncoder(backend)
        self._added = backend.get_added_tokens_decoder()
        self._special = frozenset(index for index, token in self._added.items() if token.special)
        # Text such as "\u00fc" that byte-level vocabularies also write for a byte, which is no text alone.
        self._literal = {
            index: token.content
            for index, token in self._added.items()
            if not token.special and _REPLACEMENT in backend.decode([index])
        }
        self.vocabulary = max(backend.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.longest_token = max(map(len, backend.get_vocab()), default=1)
        """The most characters of one token: a token of bytes has a character for each, and a text no more of them."""
        self.eos_token_ids = frozenset(eos_token_ids)
        self.chat_template = chat_template
        self.sampling = sampling

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read `tokenizer.json` and the configuration files beside it. Raises TokenizerError or TemplateError."""
        backend = _load_backend(folder / TOKENIZER_FILE)
        settings = _read_object(folder / SETTINGS_FILE)
        bos, eos = _token_text(settings.get("bos_token")), _token_text(settings.get("eos_token"))
        source = _template_source(folder, settings)
        template = None if source is None else ChatTemplate(source, bos, eos)
        generation = _read_object(folder / GENERATION_FILE)
        ends = end_ids(generation) | end_ids(_read_object(folder / "config.json")) | _end_tokens(backend, eos)
        if len(ends) > MAX_ENDS:
            sentence = f"{folder / GENERATION_FILE} or config.json names {len(ends)} tokens that end an answer"
            raise TokenizerError(f"{sentence}, and at most {MAX_ENDS} make sense; use another model")
        made = cls(backend, ends, template, sampling_defaults(generation, str(folder / GENERATION_FILE)))
        if made.vocabulary > _IDS:
            sentence = f"{folder / TOKENIZER_FILE} gives a token the id {made.vocabulary - 1}"
            raise TokenizerError(f"{sentence}, and no model has so many; use another model")
        return made

    def encode(self, text: str) -> list[int]:
        """Convert text to ids. A special token that is written out in the text becomes its id; none is added."""
        return list(self._encoding(text).ids)

    def count(self, text: str) -> int:
        """Count the ids of a text, without making them."""
        return len(self._encoding(text))

    @property
    def control_tokens(self) -> ControlTokens:
        """The texts that `encode` makes control tokens of."""
        return self._plain_encoder.control_tokens

    def reading(self, stand_ins: StandIns) -> StandInTokenizer:
        """Return a tokenizer of texts in which characters stand in for control tokens that are only text."""
        return StandInTokenizer(self._plain_encoder, stand_ins, self.longest_token)

    def decode(self, ids: Sequence[int]) -> str:
        """Convert ids to text without special tokens. Bytes that are not UTF-8 become U+FFFD."""
        decode = self._backend.decode
        if self._literal.keys().isdisjoint(ids):
            return str(decode(list(ids), skip_special_tokens=True))
        runs = [(text, list(run)) for text, run in groupby(ids, self._literal.get)]
        return "".join(text * len(run) if text else decode(run, skip_special_tokens=True) for text, run in runs)

    def end_turns_at(self, after_answer: str) -> None:
        """Let an answer end at the token with which `after_answer`, what a template writes behind one, begins.

        Spaces before it do not count, and a text that begins with a plain word changes nothing.
        """
        first = self.encode(after_answer.lstrip())[:1]
        self.eos_token_ids |= self._added.keys() & first

    def has_text(self, token_id: int) -> bool:
        """Return whether an id adds to a text: special tokens do not, nor do ids that no token has."""
        return token_id not in self._special and self._backend.id_to_token(token_id) is not None

    def stream(self) -> StreamDecoder:
        """Make a decoder for the ids of one answer."""
        return StreamDecoder(self)

    def _encoding(self, text: str) -> tokenizers.Encoding:
        # `encode` would hold the GIL.
        (encoding,) = self._backend.encode_batch_fast([text], add_special_tokens=False)
        return encoding


class StreamDecoder:
    """Turns ids into text as they come, whole characters only. The pieces join to what `decode` makes of all ids."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []
        self._context_ids = 0
        self._sent = 0

    def push(self, token_id: int) -> str:
        """Add an id and return the text that is now final; empty while a character is incomplete."""
        if not self._tokenizer.has_text(token_id):
            return ""
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        final = text.rstrip(_REPLACEMENT)
        if len(text) - len(final) > MAX_HELD:
            return self.flush()
        piece = final[self._sent :]
        self._sent = max(self._sent, len(final))
        if piece and final == text:
            self._trim_window()
        return piece

    def flush(self) -> str:
        """Return what was held back, with incomplete bytes as U+FFFD, and reset the decoder."""
        piece = self._tokenizer.decode(self._window)[self._sent :]
        self._window, self._context_ids, self._sent = [], 0, 0
        return piece

    def _trim_window(self) -> None:
        """Keep only the ids of the last piece as context: some decoders treat the first id of a text differently."""
        self._window = self._window[self._context_ids :]
        self._context_ids = len(self._window)
        self._sent = len(self._tokenizer.decode(self._window))


def _load_backend(path: Path) -> tokenizers.Tokenizer:
    """Read `tokenizer.json`. Raises TokenizerError."""
    if not path.is_file():
        raise TokenizerError(f"{path.parent} has no {path.name}; fetch the model again")
    if path.stat().st_size > _MAX_FILE_BYTES:
        raise TokenizerError(f"{path} is far too large for a tokenizer; delete it and fetch the model again")
    try:
        backend = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises no narrower class
        raise TokenizerError(f"{path} is not a tokenizer ({error}); delete it and fetch the model again") from error
    # Files that were saved after a training may still cut texts to its length, or fill them up to it.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in `path`; empty if there is no such file. Raises TokenizerError."""
    if not path.is_file():
        return {}
    try:
        return parse_object(path.read_bytes())
    except (OSError, ValueError) as error:
        raise TokenizerError(f"{path} does not hold a JSON object; delete it and fetch the model again") from error


def _token_text(token: Any) -> str | None:
    """Return a special token's text, which files write as a string or as an object with its `content`."""
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


def _template_source(folder: Path, settings: dict[str, Any]) -> str | None:
    """Find the chat template: in a file of its own, in the settings or in a processor's file. Raises TemplateError."""
    path = folder / TEMPLATE_FILE
    if path.is_file():
        if path.stat().st_size > MAX_SOURCE_BYTES:
            raise TemplateError(f"{path} is far too large for a chat template; use another model")
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise TemplateError(f"{path} is not readable UTF-8; delete it and fetch the model again") from error
    found = settings.get("chat_template") or _read_object(folder / PROCESSOR_TEMPLATE_FILE).get("chat_template")
    return _default_template(found, folder)


def _default_template(found: Any, folder: Path) -> str | None:
    """Return the template for chats from one, or from several by name. Raises TemplateError if none is for chats."""
    if isinstance(found, list):
        found = {str(entry.get("name")): entry.get("template") for entry in found if isinstance(entry, dict)}
    if not isinstance(found, dict):
        return found if isinstance(found, str) else None
    if len(found) > 1 and "default" not in found:
        names = ", ".join(sorted(found))[:256]
        raise TemplateError(f"{folder} has chat templates for {names}, but none that is the default; use another model")
    template = found.get("default", next(iter(found.values()), None))
    return template if isinstance(template, str) else None


def _end_tokens(backend: tokenizers.Tokenizer, eos_token: str | None) -> set[int]:
    """Return the ids of the end token that the settings name and of the end-of-turn tokens that the vocabulary has."""
    named = [backend.token_to_id(token) for token in (eos_token, *END_OF_TURN) if token is not None]
    return {token for token in named if token is not None}
