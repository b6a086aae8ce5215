"""Makes the card of a model on the hub from its settings or, of a GGUF model, its header. Fetches no weights."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from threading import Event

import msgspec

from cluster.capabilities import DeviceCapabilities
from cluster.shard import whole
from models.cache import ModelCache
from models.card import HubSource, ModelCard, SamplingDefaults, card_of
from models.errors import DownloadCancelled, NotOnHub
from models.generation_config import sampling_defaults
from models.names import AUTO, HubName
from models.quantizations import GgufModel, gguf_models, largest_that_fits, named_quant
from models.settings import Settings
from models.sources.described import Described
from models.sources.gguf_headers import HEADERS, fetch_headers, named_by_repository
from models.sources.hub_listing import Listing, list_repository, plain_errors, read_object
from models.sources.network import check_network_variables
from models.sources.safetensors_headers import SafetensorsHeaders
from models.sources.without_model import without_model
from models.stored_model import StoredModel
from models.tokenizers.gguf_tokenizer import check_tokenizer
from models.tokenizers.tokenizer import GENERATION_FILE
from models.weights.memory import least_bytes
from models.weights.packed_sizes import Forms, form_named, packed_sizes
from models.weights.reader import check_whole, model_in, open_weights
from models.weights.safetensors_weights import INDEX, SINGLE, model_with

DEFAULT_CONTEXT = 8192  # positions that a quantization is chosen for if none are asked


class Description:
    """Makes one card. `nodes` are what the cluster has, `context` how many positions a chat should have."""

    def __init__(
        self,
        name: HubName,
        cache: ModelCache,
        nodes: Sequence[DeviceCapabilities],
        context: int,
        cancelled: Event,
    ) -> None:
        self._name = name
        self._cache = cache
        self._nodes = nodes
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
        headers = SafetensorsHeaders(listing, self._check_cancelled)
        with named_by_repository(Path(repo), repo):
            files = headers.files()
            model = model_with(settings, files, f"{SINGLE if SINGLE in listing.files else INDEX} of {repo}")
            if model.described:
                headers.check(model.described, files)
        generation = read_object(listing, GENERATION_FILE)
        recommended = sampling_defaults(generation, f"{GENERATION_FILE} of {repo}")
        source = HubSource(repo, listing.commit)
        made = self._card(self._name, model, source, size, listing, _floats)
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
        return self._largest(listing, models)

    def _largest(self, listing: Listing, models: tuple[GgufModel, ...]) -> Described:
        """Take the largest quantization that fits: what each needs follows from its name until its header is read."""
        needs = self._estimated_needs(listing, models)
        cards: dict[GgufModel, ModelCard] = {}
        free = sum(node.memory_available for node in self._nodes)
        while True:
            chosen, why = largest_that_fits(models, needs.__getitem__, free)
            if chosen in cards:
                card = cards[chosen]
                return Described(card, f"{why} with a context of {min(self._context, card.context_length)}")
            cards[chosen] = self._gguf_card(listing, chosen)
            needs[chosen] = self._need(cards[chosen])

    def _estimated_needs(self, listing: Listing, models: tuple[GgufModel, ...]) -> dict[GgufModel, int]:
        """Estimate the needs of all by the header of the first, in which all but the tensors' kinds are the same."""
        self._cache.root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".describe-", dir=self._cache.root) as name:
            folder = Path(name)
            with named_by_repository(folder, listing.repo):
                headers = fetch_headers(listing, models[0].files, folder, self._check_cancelled)
                first = model_in(open_weights(headers))
        source = HubSource(listing.repo, listing.commit)

        def estimated(model: GgufModel) -> int:
            form = form_named(model.quant)
            return self._need(self._card(self._name, first, source, model.size, listing, lambda _: form))

        return {model: estimated(model) for model in models}

    def _need(self, card: ModelCard) -> int:
        """Return the bytes that a model takes on the nodes, by the engine that needs most."""
        shard, nodes = whole(card.id, card.n_layers), self._nodes or (DeviceCapabilities(),)
        return max(least_bytes(card, shard, node, self._context) for node in nodes)

    def _gguf_card(self, listing: Listing, model: GgufModel) -> ModelCard:
        name = HubName(listing.repo, self._name.revision, model.quant)
        folder = self._cache.root / name.model_id / HEADERS / listing.commit
        source = HubSource(listing.repo, listing.commit, model.files)
        with named_by_repository(folder, listing.repo):
            path = fetch_headers(listing, model.files, folder, self._check_cancelled)
            weights = open_weights(path)
            found = model_in(weights)
            if found.described:
                check_whole(found.described, weights.names(), str(path))
            check_tokenizer(path)
            return self._card(name, found, source, model.size, listing, weights.form)

    def _card(
        self,
        name: HubName,
        model: StoredModel,
        source: HubSource,
        size_bytes: int,
        listing: Listing,
        form: Forms,
    ) -> ModelCard:
        return card_of(
            model.sizes,
            model.described,
            engine=model.only_engine,
            id=name.model_id,
            source=source,
            size_bytes=size_bytes,
            packed=packed_sizes(model.described, form) if model.described else None,
            name=str(name),
            made_from=str(name),
            license=listing.license,
        )

    def _check_cancelled(self) -> None:
        if self._cancelled.is_set():
            raise DownloadCancelled(f"{self._name} is not wanted any more")


def _floats(name: str) -> None:
    """Return the form of every tensor in safetensors files: none is quantized."""


def _safetensors_bytes(listing: Listing) -> int:
    """Add up the weights files that an engine reads; 0 if the repository has none in this form."""
    if SINGLE in listing.files:
        return listing.files[SINGLE].size
    parts = [file for file in listing.files.values() if file.name.startswith("model-") and "/" not in file.name]
    return sum(file.size for file in parts if file.name.endswith(".safetensors")) if INDEX in listing.files else 0
