"""The source for models already on this machine. It copies nothing and checks what is there in place."""

from __future__ import annotations

from pathlib import Path

from cluster.shard import Shard
from models.card import FolderSource, compare_sizes
from models.errors import DownloadError
from models.sources.request import FetchRequest
from models.tokenizers.gguf_tokenizer import ensure_tokenizer, is_built
from models.tokenizers.tokenizer import TOKENIZER_FILE
from models.weights.checkpoint import tensor_names
from models.weights.layer_names import needed_names
from models.weights.reader import Weights, open_weights, sizes_of


def fetch_from_folder(request: FetchRequest, source: FolderSource) -> Path:
    """Return the user's folder or .gguf file if it can serve the shard. Raises a ModelError if it cannot."""
    path, card = source.path, request.card
    if not path.exists():
        raise DownloadError(f"{path} of the model {card.id} is not there; correct the path in its card")
    weights = open_weights(path)
    compare_sizes(card, sizes_of(weights), path)
    needed = () if request.shard is None else _needed(weights, request.shard)
    missing = [name for name in needed if name not in weights.names()]
    if missing:
        raise DownloadError(f"{path} lacks {missing[0]}; point the card of {card.id} to a whole model")
    if not request.cache.unchanged(path):  # a gateway may hold the tokenizer, or an engine the weights, of before
        raise DownloadError(f"{path} of the model {card.id} was changed while exobus runs; restart the node to use it")
    if request.shard is None and path.is_file():  # the tokenizer of a .gguf file goes to the cache
        if not is_built(path, request.folder):  # a cache that has it need not be writable
            with request.locked_folder() as folder:
                ensure_tokenizer(path, folder)
    elif request.shard is None and not (path / TOKENIZER_FILE).is_file():
        raise DownloadError(f"{path} has no {TOKENIZER_FILE}; copy the model's own into it")
    return path


def _needed(weights: Weights, shard: Shard) -> tuple[str, ...]:
    """List the tensors that a shard needs, by the names with which they are read."""
    repository = weights.repository
    if repository is not None and repository.model.undescribed:
        return needed_names(shard, repository.names) if repository.path.is_dir() else ()
    return tensor_names(weights.architecture, shard)
