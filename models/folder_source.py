"""The source for models already on this machine: nothing is copied, what is there is checked in place."""

from __future__ import annotations

from pathlib import Path

from models.cache import Fetch
from models.card import FolderSource
from models.errors import DownloadError
from models.gguf_tokenizer import ensure_tokenizer
from models.tokenizer import TOKENIZER_FILE
from models.weights import open_weights, shard_names


def fetch_from_folder(fetch: Fetch, source: FolderSource) -> Path:
    """The user's folder or .gguf file, if it can serve the shard. Raises ModelError of several kinds."""
    if not source.path.exists():
        raise DownloadError(f"{source.path} of the model {fetch.card.id} is not there; correct the path in its card")
    with open_weights(source.path) as weights:
        if weights.config.n_layers != fetch.card.n_layers:
            raise DownloadError(
                f"{source.path} has {weights.config.n_layers} layers where the card of {fetch.card.id} says "
                f"{fetch.card.n_layers}; correct the card"
            )
        needed = () if fetch.shard is None else shard_names(weights.config, fetch.shard)
        missing = [name for name in needed if name not in weights.names()]
    if missing:
        raise DownloadError(f"{source.path} lacks {missing[0]}; point the card of {fetch.card.id} to a whole model")
    if fetch.shard is None:
        _check_tokenizer(fetch, source.path)
    return source.path


def _check_tokenizer(fetch: Fetch, path: Path) -> None:
    if path.is_dir() and not (path / TOKENIZER_FILE).is_file():
        raise DownloadError(f"{path} has no {TOKENIZER_FILE}; copy the model's own into it")
    if path.is_file():
        with fetch.cache.locked(fetch.card, fetch.report, fetch.cancelled) as folder:
            ensure_tokenizer(path, folder)
