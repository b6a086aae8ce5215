"""A model card: a model's names, its sizes and where its files come from. Reads no file.

Cards are written by hand, or made by `card_of` from the model's own configuration; both travel and are kept as JSON.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import msgspec

from cluster.shard import Shard
from models.architecture import Architecture
from models.errors import CatalogueError, WrongCard
from models.sizes import FLOAT32_BYTES, ModelSizes, layer_bytes

ALIAS = re.compile(r"[a-z0-9][a-z0-9._:/-]{0,127}")
MODEL_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,94}[a-z0-9])?")
REPO_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")
REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!+_-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
MEMBER = re.compile(r"\w[\w .,+=@()\[\]-]*(?:/\w[\w .,+=@()\[\]-]*)*\.gguf", re.IGNORECASE)

Engine = Literal["", "mlx", "llamacpp"]
"""The only engine that may run a model which exobus does not describe; "" for one that it describes."""

_SIZES = ("n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "vocab_size")
_BYTES = ("context_length", "layer_bytes", "embedding_bytes", "size_bytes")
_STORED_BYTES = 2  # of a weight of an embedding that is not converted, at most

MIN_POSITIONS = 4096
"""A shard needs room for the keys and values of at least this many positions, or of the context if that is shorter."""


class HubSource(msgspec.Struct, frozen=True, tag="hub", tag_field="kind", forbid_unknown_fields=True):
    """A Hugging Face repository at a branch, tag or commit: of safetensors files, unless `files` names GGUF files.

    `files` are paths in the repository: one file, or all parts of a split model in order.
    """

    repo: str
    revision: str = "main"
    files: tuple[str, ...] = ()


class PackageSource(msgspec.Struct, frozen=True, tag="package", tag_field="kind", forbid_unknown_fields=True):
    """A wheel on a package index: its pinned requirement, its sha256 and the path of the .gguf file in it."""

    requirement: str
    sha256: str
    member: str


class FolderSource(msgspec.Struct, frozen=True, tag="folder", tag_field="kind", forbid_unknown_fields=True):
    """A folder of safetensors files, or a .gguf file, on this machine."""

    path: Path


Source = HubSource | PackageSource | FolderSource


class SamplingDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model's authors recommend. A request overrides each value; `top_k` 0 and `min_p` 0 mean off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


PACKED_BITS = (0, 8, 4)


class PackedSizes(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bytes in an engine that keeps quantized matrices packed: of the largest layer, the embedding and the head.

    Each is given three times, for PACKED_BITS: with float matrices as float32, and rounded to 8 and to 4 bits.
    """

    layer: tuple[int, int, int]
    embedding: tuple[int, int, int]
    head: tuple[int, int, int]


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model. `size_bytes` is the size of its files; the other sizes are of float32 in memory, but those `packed`.

    A card of the hub may leave all sizes out (0): they are read from the model when it is first asked for. `params` is
    the number of weights as its makers give it, such as `8B`, for display. `made_from` is the name on the hub from
    which the card was made, and empty for a card of the catalogue. `engine` is the only engine that runs the model, and
    empty if exobus describes it.
    """

    id: str
    source: Source
    name: str = ""
    family: str = ""
    n_layers: int = 0
    hidden_size: int = 0
    n_heads: int = 0
    n_kv_heads: int = 0
    head_dim: int = 0
    vocab_size: int = 0
    context_length: int = 0
    layer_bytes: int = 0
    embedding_bytes: int = 0
    size_bytes: int = 0
    tied_embedding: bool = True
    packed: PackedSizes | None = None
    aliases: tuple[str, ...] = ()
    license: str = ""
    params: str = ""
    made_from: str = ""
    engine: Engine = ""
    defaults: SamplingDefaults = SamplingDefaults()

    @property
    def sized(self) -> bool:
        """Whether the card has the model's sizes; without them it cannot be placed."""
        return self.n_layers > 0

    @property
    def is_gguf(self) -> bool:
        """Whether the model comes as GGUF files, as its source names them."""
        match self.source:
            case HubSource(files=files):
                return bool(files)
            case FolderSource(path=path):
                return path.suffix.lower() == ".gguf"
            case PackageSource():
                return True

    @property
    def hub_name(self) -> str:
        """The name by which any node finds the same model: of the hub if the card was made from it, else its id."""
        return self.made_from or self.id

    @property
    def head_layers(self) -> int:
        """How many layers cost as much work as the head, judged by their sizes."""
        return round(self.embedding_bytes / self.layer_bytes)

    def shard_bytes(self, shard: Shard) -> int:
        """Count a shard's bytes as float32: its layers, the embedding if first, the head if last (tied: once)."""
        ends = shard.is_first + shard.is_last
        return (
            len(shard.layers) * self.layer_bytes
            + (min(ends, 1) if self.tied_embedding else ends) * self.embedding_bytes
        )

    def kv_bytes(self, shard: Shard, positions: int) -> int:
        """Count the bytes of `positions` positions' keys and values in a shard, as float32: no engine takes more."""
        return positions * len(shard.layers) * 2 * self.n_kv_heads * self.head_dim * FLOAT32_BYTES

    def least_kv_bytes(self, shard: Shard) -> int:
        """Count the bytes of keys and values that a shard needs at least: one session of MIN_POSITIONS."""
        return self.kv_bytes(shard, min(self.context_length, MIN_POSITIONS))


def check_card(card: ModelCard, where: str) -> ModelCard:
    """Return the card if its names and sizes are sane. Raises CatalogueError, which names `where` and the field."""
    if not MODEL_ID.fullmatch(card.id):
        raise CatalogueError(f"{where}: field id is not lower-case letters, digits, dots and dashes: {card.id!r}")
    for alias in card.aliases:
        if not ALIAS.fullmatch(alias):
            raise CatalogueError(f"{where}: field aliases holds {alias!r}, which is not a lower-case name")
    for name in () if _left_out(card) else (*_SIZES, *_BYTES):
        if getattr(card, name) <= 0:
            raise CatalogueError(f"{where}: field {name} must be positive, and is {getattr(card, name)}")
    for name, text, pattern in _source_fields(card.source):
        if not pattern.fullmatch(text):
            raise CatalogueError(f"{where}: field source.{name} is not well formed: {text!r}")
    return card


def card_of(
    sizes: ModelSizes,
    architecture: Architecture | None,
    *,
    size_bytes: int,
    packed: PackedSizes | None = None,
    **fields: Any,
) -> ModelCard:
    """Make a card with a model's own sizes; `fields` are the other fields of the card.

    Of a model that exobus does not describe, the bytes in memory are those of its files, which its
    engine keeps as stored. Raises CatalogueError, as `check_card` does.
    """
    embedding = sizes.vocab_size * sizes.hidden_size
    card = ModelCard(
        family=sizes.model_type,
        layer_bytes=layer_bytes(architecture) if architecture else -(-size_bytes // sizes.n_layers),
        embedding_bytes=embedding * (FLOAT32_BYTES if architecture else _STORED_BYTES),
        size_bytes=size_bytes,
        tied_embedding=sizes.tied_embedding,
        packed=packed,
        **{name: getattr(sizes, name) for name in (*_SIZES, "context_length")},
        **fields,
    )
    return check_card(card, f"the model {card.id}")


def with_sizes_of(card: ModelCard, described: ModelCard) -> ModelCard:
    """Return a card of the catalogue with the sizes, and the commit, of one that was made from the model itself."""
    names = (*_SIZES, *_BYTES, "family", "tied_embedding", "engine", "packed")
    sizes = {name: getattr(described, name) for name in names}
    defaults = card.defaults if card.defaults != SamplingDefaults() else described.defaults
    license_name = card.license or described.license
    return msgspec.structs.replace(card, source=described.source, defaults=defaults, license=license_name, **sizes)


def encode_card(card: ModelCard) -> str:
    """Return a card as JSON."""
    return msgspec.json.encode(card, enc_hook=str).decode()


def travelling(card: ModelCard) -> str:
    """Return a card as JSON for another process or node; "" for an own model: its path stays here."""
    return "" if isinstance(card.source, FolderSource) else encode_card(card)


def decode_card(text: str | bytes, where: str) -> ModelCard:
    """Read a card from JSON and check it. Raises CatalogueError, which names `where`."""
    try:
        return check_card(msgspec.json.decode(text, type=ModelCard, dec_hook=path_of), where)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CatalogueError(f"{where}: {error}; remove it and add the model again") from error


def path_of(kind: type, value: object) -> Path:
    """Convert a string to a path for msgspec, which knows only plain types."""
    if kind is not Path or not isinstance(value, str) or not value:
        raise NotImplementedError(f"a card holds no {kind.__name__}")
    return Path(value).expanduser()


def _left_out(card: ModelCard) -> bool:
    """Return whether a card of the hub leaves out its sizes, all of them but `size_bytes`, which is shown."""
    return isinstance(card.source, HubSource) and not any(getattr(card, name) for name in (*_SIZES, *_BYTES[:-1]))


def compare_sizes(card: ModelCard, sizes: ModelSizes, path: Path) -> None:
    """Raise WrongCard if the model at `path` has other sizes than its card says, a shorter context or another head.

    A card may make the context shorter, and count a head that the embedding serves for.
    """
    pairs = {name: (getattr(card, name), getattr(sizes, name)) for name in _SIZES}
    pairs["tied_embedding"] = card.tied_embedding, card.tied_embedding and sizes.tied_embedding
    pairs["context_length"] = max(card.context_length, sizes.context_length), sizes.context_length
    for name, (said, true) in pairs.items():
        if said != true:
            sentence = f"the card of {card.id} says that its {name} is {said}, but that of {path} is {true}"
            raise WrongCard(f"{sentence}; correct the card and restart the node")


def _source_fields(source: Source) -> list[tuple[str, str, re.Pattern[str]]]:
    """List the fields of a source that are checked: name, value, and the pattern that the whole value must match."""
    match source:
        case HubSource():
            files = [("files", file, MEMBER) for file in source.files]
            return [("repo", source.repo, REPO_NAME), ("revision", source.revision, REVISION), *files]
        case PackageSource():
            requirement = ("requirement", source.requirement, REQUIREMENT)
            return [requirement, ("sha256", source.sha256, SHA256), ("member", source.member, MEMBER)]
        case FolderSource():
            return []
