"""A user's own model, in a folder or a file of this machine: its card, made from what is there."""

from __future__ import annotations

import re
from pathlib import Path

from models.card import FolderSource, ModelCard, SamplingDefaults, card_of
from models.config import read_json
from models.errors import WeightsError
from models.fingerprint import model_files
from models.generation_config import sampling_defaults
from models.quantizations import SPLIT
from models.sources.without_model import without_model
from models.tokenizers.gguf_tokenizer import check_tokenizer
from models.tokenizers.tokenizer import TOKENIZER_FILE
from models.weights.packed_sizes import packed_sizes
from models.weights.reader import check_whole, model_in, open_weights
from models.weights.safetensors_weights import INDEX, SINGLE, index_files

_GENERATION = "generation_config.json"


def own_card(path: Path, model_id: str = "") -> ModelCard:
    """Make the card of the model at `path`, under an id that follows from its name unless one is given.

    A folder that holds the GGUF files of one model stands for them. Raises a ModelError.
    """
    path = _weights_path(path.expanduser().absolute())
    if path.is_dir():
        _check_files(path)
    weights = open_weights(path)
    model = model_in(weights)
    if model.described:
        check_whole(model.described, weights.names(), str(path))
    if path.is_file():
        check_tokenizer(path)
    packed = packed_sizes(model.described, weights.form) if model.described else None
    generation = path / _GENERATION
    recommended = sampling_defaults(read_json(generation), str(generation)) if generation.is_file() else None
    return card_of(
        model.sizes,
        model.described,
        id=model_id or id_of(path),
        source=FolderSource(path),
        size_bytes=sum(file.stat().st_size for file in model_files(path)),
        engine=model.only_engine,
        packed=packed,
        name=path.name,
        defaults=recommended or SamplingDefaults(),
    )


def id_of(path: Path) -> str:
    """Derive an id from the name of a folder or file: `My Model-Q4_K_M.gguf` is `my-model-q4_k_m`."""
    split = SPLIT.fullmatch(path.name)
    stem = split["stem"] if split else re.sub(r"\.gguf\Z", "", path.name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9._-]+", "-", stem.lower())[:96].strip("._-") or "model"


def _weights_path(path: Path) -> Path:
    """Return what an engine opens: a folder of safetensors, or a GGUF file, the first one of a split model."""
    if not path.exists():
        raise WeightsError(f"{path} is not there; give the path of a model folder or of a .gguf file")
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == ".gguf")
    later = {file for file in files if (split := SPLIT.fullmatch(file.name)) and int(split["number"]) != 1}
    models = [file for file in files if file not in later and "mmproj" not in file.name.lower()]
    if len(models) > 1:
        raise WeightsError(f"{path} holds {len(models)} models; give the path of one, such as {models[0]}")
    return models[0] if models else path


def _check_files(folder: Path) -> None:
    """Raise WeightsError if a folder has no model, or lacks a file of the one that it has."""
    names = [file.name for file in folder.iterdir()]
    if "config.json" not in names or not {SINGLE, INDEX} & set(names):
        raise WeightsError(f"{folder} {without_model(names)}")
    files = sorted(set(index_files(folder).values())) if INDEX in names else []
    if missing := [file for file in files if not (folder / file).is_file()]:
        raise WeightsError(f"{folder} lacks {missing[0]}, which {INDEX} names; fetch that file as well")
    if TOKENIZER_FILE not in names:
        raise WeightsError(f"{folder} has no {TOKENIZER_FILE}; copy the model's own into it")
