"""Makes the card of a model on the hub from its settings or, of a GGUF model, its header. Fetches no weights."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from threading import Event

import msgspec

from cluster.shard import whole
from models.architecture import Architecture
from models.cache import ModelCache
from models.card import HubSource, ModelCard, SamplingDefaults, card_of
from models.errors import DownloadCancelled, NotOnHub, WeightsError
from models.folder_model import model_of
from models.generation_config import sampling_defaults
from models.names import AUTO, HubName
from models.quantizations import GgufModel, gguf_models, largest_that_fits, named_quant
from models.settings import Settings
from models.sizes import ModelSizes, model_sizes
from models.sources.described import Described
from models.sources.gguf_headers import HEADERS, fetch_headers, named_by_repository
from models.sources.hub_listing import (
    MAX_JSON_BYTES,
    Listing,
    json_object,
    list_repository,
    plain_errors,
    read_object,
    read_range,
)
from models.sources.network import check_network_variables
from models.sources.without_model import without_model
from models.tokenizer import GENERATION_FILE
from models.weights.layer_names import has_head
from models.weights.layout import safetensors_places
from models.weights.reader import check_whole, open_weights
from models.weights.safetensors_weights import INDEX, SINGLE

DEFAULT_CONTEXT = 8192  # positions that a quantization is chosen for if none are asked


class Description:
    """Makes one card. `free_bytes` is the memory of the cluster, `context` how many positions a chat should have."""

    def __init__(self, name: HubName, cache: ModelCache, free_bytes: int, context: int, cancelled: Event) -> None:
        self._name = name
        self._cache = cache
        self._free_bytes = free_bytes
        self._context = context or DEFAULT_CONTEXT
        self._cancelled = cancelled

    def make(self) -> Described:
        """Request the listing, and what the sizes stand in. Raises a ModelError."""
        name, revision = self._name, self._name.revision or "main"
        check_network_variables()
        with plain_errors(name.repo, revision):
            listing = list_repository(name.repo, revision)
            ggufs = gguf_models({file.name: file.size for file in listing.files.values()})
            if name.quant or (ggufs and not _safetensors_bytes(listing)):
                return self._gguf(listing, ggufs)
            return Described(self._safetensors(listing))

    def _safetensors(self, listing: Listing) -> ModelCard:
        size, repo = _safetensors_bytes(listing), listing.repo
        if not size or "config.json" not in listing.files:
            raise NotOnHub(f"{repo} {without_model(listing.files)}")
        settings = Settings(read_object(listing, "config.json"), f"config.json of {repo}")
        names = _tensor_names(listing)
        model = model_of(settings.replaced(tie_word_embeddings=not has_head(names)))
        if model.described:
            places = safetensors_places(model.described, whole("", model.sizes.n_layers))
            there = [name for name, place in places.items() if all(part in names for part in place.names)]
            check_whole(model.described, there, repo)
        generation = read_object(listing, GENERATION_FILE)
        recommended = sampling_defaults(generation, f"{GENERATION_FILE} of {repo}")
        made = self._card(self._name, model.sizes, model.described, HubSource(repo, listing.commit), size, listing)
        return msgspec.structs.replace(made, defaults=recommended or SamplingDefaults())

    def _gguf(self, listing: Listing, models: tuple[GgufModel, ...]) -> Described:
        """Take the named quantization, or the largest one that fits."""
        asked = self._name.quant
        if not models:
            raise NotOnHub(f"{listing.repo} has no GGUF files; leave :{asked} out, or pick another model")
        if asked and asked.lower() != AUTO:
            return Described(self._gguf_card(listing, named_quant(models, asked, listing.repo)))
        if len(models) == 1:
            return Described(self._gguf_card(listing, models[0]))
        chosen, why = largest_that_fits(models, self._need(listing, models[0]), self._free_bytes)
        card = self._gguf_card(listing, chosen)
        return Described(card, f"{why} with a context of {min(self._context, card.context_length)}")

    def _need(self, listing: Listing, smallest: GgufModel) -> Callable[[GgufModel], int]:
        """Return what a quantization needs in bytes: its files, and the keys and values, which are as large in all."""
        self._cache.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".describe-", dir=self._cache.root) as folder:
            architecture = self._gguf_architecture(listing, smallest, Path(folder))
        source = HubSource(listing.repo, listing.commit)
        card = self._card(self._name, model_sizes(architecture), architecture, source, 1, listing)
        positions = min(self._context, card.context_length)
        kv_bytes = card.kv_bytes(whole(card.id, card.n_layers), positions)
        return lambda model: model.size + kv_bytes

    def _gguf_card(self, listing: Listing, model: GgufModel) -> ModelCard:
        name = HubName(listing.repo, self._name.revision, model.quant)
        folder = self._cache.root / name.model_id / HEADERS / listing.commit
        architecture = self._gguf_architecture(listing, model, folder)
        source = HubSource(listing.repo, listing.commit, model.files)
        return self._card(name, model_sizes(architecture), architecture, source, model.size, listing)

    def _gguf_architecture(self, listing: Listing, model: GgufModel, folder: Path) -> Architecture:
        with named_by_repository(folder, listing.repo):
            path = fetch_headers(listing, model.files, folder, self._check_cancelled)
            with open_weights(path) as weights:
                check_whole(weights.architecture, weights.names(), str(path))
                return weights.architecture

    def _card(
        self,
        name: HubName,
        sizes: ModelSizes,
        architecture: Architecture | None,
        source: HubSource,
        size_bytes: int,
        listing: Listing,
    ) -> ModelCard:
        return card_of(
            sizes,
            architecture,
            id=name.model_id,
            source=source,
            size_bytes=size_bytes,
            name=str(name),
            made_from=str(name),
            license=listing.license,
        )

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise DownloadCancelled(f"{self._name} is not wanted any more")


def _tensor_names(listing: Listing) -> Collection[str]:
    """Request the names of a model's tensors: from its index, or the header of its only file. Raises a ModelError."""
    if SINGLE not in listing.files:
        names = read_object(listing, INDEX).get("weight_map")
    else:
        url = listing.url(SINGLE)
        length = min(int.from_bytes(read_range(url, 0, 8), "little"), MAX_JSON_BYTES)
        names = json_object(read_range(url, 8, length), f"the header of {SINGLE}", listing.repo)
    if not isinstance(names, dict):
        raise WeightsError(f"{INDEX} of {listing.repo} names no tensors; pick another model")
    return names


def _safetensors_bytes(listing: Listing) -> int:
    """Add up the weights files that an engine reads; 0 if the repository has none in this form."""
    if SINGLE in listing.files:
        return listing.files[SINGLE].size
    parts = [file for file in listing.files.values() if file.name.startswith("model-") and "/" not in file.name]
    return sum(file.size for file in parts if file.name.endswith(".safetensors")) if INDEX in listing.files else 0
