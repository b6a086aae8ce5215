"""A model card: what a model is called, how large it is and where it comes from. Reads no file."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec

from cluster.shard import Shard
from models.errors import CatalogueError

ALIAS = re.compile(r"[a-z0-9][a-z0-9._:/-]{0,127}")
LEAST_POSITIONS = 4096  # of keys and values that a node has room for at least, or the context where that is shorter
MODEL_ID = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,94}[a-z0-9])?")
REPO_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
REVISION = re.compile(r"[A-Za-z0-9][\w.-]{0,127}")
REQUIREMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*==[0-9][A-Za-z0-9.!+_-]*")
SHA256 = re.compile(r"[0-9a-f]{64}")
MEMBER = re.compile(r"[A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)*\.gguf")


class HubSource(msgspec.Struct, frozen=True, tag="hub", tag_field="kind", forbid_unknown_fields=True):
    """A Hugging Face repository of safetensors files at a branch, tag or commit."""

    repo: str
    revision: str = "main"


class PackageSource(msgspec.Struct, frozen=True, tag="package", tag_field="kind", forbid_unknown_fields=True):
    """A wheel on a package index: a pinned requirement, the wheel's sha256 and the .gguf file inside it."""

    requirement: str
    sha256: str
    member: str


class FolderSource(msgspec.Struct, frozen=True, tag="folder", tag_field="kind", forbid_unknown_fields=True):
    """A folder of safetensors files, or a .gguf file, on this machine."""

    path: Path


Source = HubSource | PackageSource | FolderSource


class SamplingDefaults(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the model's makers recommend; a request overrides each. `top_k` 0 and `min_p` 0 mean off."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0


class ModelCard(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One model of the catalogue; `size_bytes` are to fetch, the others are float32 in memory."""

    id: str
    name: str
    family: str
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int
    layer_bytes: int
    embedding_bytes: int
    size_bytes: int
    source: Source
    tied_embedding: bool = True
    aliases: tuple[str, ...] = ()
    license: str = ""
    defaults: SamplingDefaults = SamplingDefaults()

    @property
    def head_layers(self) -> int:
        """As how many layers' work the head counts: by its size."""
        return round(self.embedding_bytes / self.layer_bytes)

    def shard_bytes(self, shard: Shard) -> int:
        """Resident bytes of a shard: its layers, the embedding if first, the head if last (tied: once)."""
        ends = shard.is_first + shard.is_last
        return (
            len(shard.layers) * self.layer_bytes
            + (min(ends, 1) if self.tied_embedding else ends) * self.embedding_bytes
        )

    def kv_bytes(self, shard: Shard, positions: int) -> int:
        """Bytes of so many positions' keys and values in a shard, as float32, which no engine exceeds."""
        return positions * len(shard.layers) * 2 * self.n_kv_heads * self.head_dim * 4

    def least_kv_bytes(self, shard: Shard) -> int:
        """Bytes of keys and values without which a shard is of no use: one session of LEAST_POSITIONS."""
        return self.kv_bytes(shard, min(self.context_length, LEAST_POSITIONS))

    def least_bytes(self, shard: Shard) -> int:
        """What a node must have free to hold a shard: its weights, and the least keys and values."""
        return self.shard_bytes(shard) + self.least_kv_bytes(shard)


def check_card(card: ModelCard, where: str) -> ModelCard:
    """The card itself when names and sizes are sane; CatalogueError names `where` and the field."""
    if not MODEL_ID.fullmatch(card.id):
        raise CatalogueError(f"{where}: field id is not lower-case letters, digits, dots and dashes: {card.id!r}")
    for alias in card.aliases:
        if not ALIAS.fullmatch(alias):
            raise CatalogueError(f"{where}: field aliases holds {alias!r}, which is not a lower-case name")
    sizes = ("n_layers", "hidden_size", "n_heads", "n_kv_heads", "head_dim", "vocab_size", "context_length")
    for name in (*sizes, "layer_bytes", "embedding_bytes", "size_bytes"):
        if getattr(card, name) <= 0:
            raise CatalogueError(f"{where}: field {name} must be positive, and is {getattr(card, name)}")
    for name, text, pattern in _source_fields(card.source):
        if not pattern.fullmatch(text):
            raise CatalogueError(f"{where}: field source.{name} is not well formed: {text!r}")
    return card


def _source_fields(source: Source) -> list[tuple[str, str, re.Pattern[str]]]:
    match source:
        case HubSource():
            return [("repo", source.repo, REPO_NAME), ("revision", source.revision, REVISION)]
        case PackageSource():
            requirement = ("requirement", source.requirement, REQUIREMENT)
            return [requirement, ("sha256", source.sha256, SHA256), ("member", source.member, MEMBER)]
        case FolderSource():
            return []
