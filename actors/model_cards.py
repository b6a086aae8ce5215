"""The cards that a node actor works with: found by the names that requests carry, and restricted to where files are."""

from __future__ import annotations

from bus.client import BusClient, RequestError
from bus.messages import ModelDescribe, ModelDescribed, ShardLoad
from cluster.failures import FailureCode
from cluster.needed_engine import no_engine, nodes_with_engine
from cluster.own_models import MAX_OWN_MODELS, OwnModel, nodes_with, only_nodes
from cluster.topology import Topology
from engines.cuts import able_nodes
from models.card import FolderSource, ModelCard, decode_card
from models.catalogue import Catalogue
from models.errors import CatalogueError, UnknownModel
from models.fingerprint import Fingerprints

DESCRIBE_TIMEOUT_S = 150.0  # the download actor gives up before


class ModelCards:
    """Finds cards, and knows which nodes have which models in folders of their own."""

    def __init__(self, catalogue: Catalogue, bus: BusClient) -> None:
        self._catalogue = catalogue
        self._bus = bus
        self._fingerprints = Fingerprints()
        self._listed: dict[str, tuple[OwnModel, ...]] = {}  # by node id

    def all(self) -> tuple[ModelCard, ...]:
        """List the cards with sizes, so those of all models that can be placed."""
        return tuple(card for card in self._catalogue.cards() if card.sized)

    async def find(self, name: str) -> ModelCard:
        """Return the card of a name; one that no card here has is looked up on the hub. Raises RequestError."""
        try:
            card = self._catalogue.get(name)
        except UnknownModel as error:
            if "/" not in name:
                raise RequestError(FailureCode.MODEL_NOT_FOUND, str(error)) from None
        else:
            if card.sized:
                return card
        described = await self._bus.request("download", ModelDescribe(name), ModelDescribed, DESCRIBE_TIMEOUT_S)
        return decode_card(described.card, f"the card of {name}")

    def of_shard(self, work: ShardLoad) -> ModelCard:
        """Return the card for a shard that a placer sends. Raises RequestError.

        A folder is only ever read if a card of this node names it, and if the files are those that the placer means.
        """
        try:
            card = self._catalogue.received(work.shard.model_id, work.card)
        except UnknownModel as error:
            raise RequestError(FailureCode.MODEL_NOT_FOUND, str(error)) from None
        except CatalogueError as error:
            raise RequestError(FailureCode.FORBIDDEN, str(error)) from None
        if work.fingerprint and self.fingerprint(card) != work.fingerprint:
            sentence = f"the files of {card.id} here differ from those of the node that places it; copy them again"
            raise RequestError(FailureCode.CONFLICT, sentence)
        return card

    def fingerprint(self, card: ModelCard) -> str:
        """Return the fingerprint of an own model; "" for any other, and if its files cannot be read."""
        return self._fingerprints.get(card.source.path) if isinstance(card.source, FolderSource) else ""

    def own(self) -> tuple[OwnModel, ...]:
        """List this node's own models, for its record."""
        models = [OwnModel(card.id, self.fingerprint(card)) for card in self._catalogue.own() if card.sized]
        return tuple(model for model in models if model.fingerprint)[:MAX_OWN_MODELS]

    def record(self, node_id: str, models: tuple[OwnModel, ...]) -> None:
        """Note which own models a node lists."""
        self._listed[node_id] = models

    def forget(self, node_id: str) -> None:
        """Forget what a lost node listed."""
        self._listed.pop(node_id, None)

    def holders(self, card: ModelCard, node_ids: set[str]) -> set[str]:
        """Return those of the nodes that can have a model's files: of an own model those that list it, else all."""
        if not isinstance(card.source, FolderSource):
            return node_ids
        listed = {**self._listed, self._bus.node_id: self.own()}
        return node_ids & nodes_with(OwnModel(card.id, self.fingerprint(card)), listed)

    def within(self, topology: Topology, card: ModelCard) -> Topology:
        """Return the topology of the nodes that can have a model's files and an engine that runs it."""
        return able_nodes(card, only_nodes(topology, frozenset(self.holders(card, set(topology.node_ids)))))

    def check_engine(self, card: ModelCard, topology: Topology) -> None:
        """Raise RequestError if no node of the topology has the engine that a model needs."""
        if not nodes_with_engine(topology, card.engine):
            raise RequestError(FailureCode.NO_ENGINE, no_engine(card.id, card.family, card.engine, topology))
