"""A contiguous range of a model's layers. Knows nothing of files, engines or machines."""

from __future__ import annotations

import msgspec

from common.limits import ModelId, Whole


class Shard(msgspec.Struct, frozen=True):
    """Layers `start_layer` to `end_layer` (half-open, from 0) of a model of `n_layers`.

    An empty range, or one outside the model, is refused.
    """

    model_id: ModelId
    start_layer: Whole
    end_layer: Whole
    n_layers: Whole

    def __post_init__(self) -> None:
        if not 0 <= self.start_layer < self.end_layer <= self.n_layers:
            raise ValueError(
                f"a shard is a non-empty range inside 0..{self.n_layers}, got {self.start_layer}..{self.end_layer}"
            )

    @property
    def is_first(self) -> bool:
        """Whether this shard embeds the token ids."""
        return self.start_layer == 0

    @property
    def is_last(self) -> bool:
        """Whether this shard ends in the final norm and the head."""
        return self.end_layer == self.n_layers

    @property
    def layers(self) -> range:
        """The numbers of the layers in this shard."""
        return range(self.start_layer, self.end_layer)

    def __str__(self) -> str:
        return f"{self.model_id}[{self.start_layer}:{self.end_layer}]"


def whole(model_id: str, n_layers: int) -> Shard:
    """Return the shard that holds the entire model."""
    return Shard(model_id, 0, n_layers, n_layers)
