"""The files of a split GGUF model, read as one. Each has a header of its own; the metadata stands in the first one."""

from __future__ import annotations

from pathlib import Path

import msgspec
from gguf import Keys

from models.errors import WeightsError
from models.quantizations import SPLIT, part_names
from models.weights.gguf.header import GgufHeader, GgufTensor, read_header

MAX_PARTS = 512


def read_model_header(path: Path, skipped: str = "") -> GgufHeader:
    """Read the header of a model: of `path`, or of all parts of a split one of which `path` is the first.

    `skipped` is as in `read_header`. The places of metadata are in the first part. Raises WeightsError if a part is
    missing, damaged or of another model.
    """
    header = read_header(path, skipped)
    count = header.metadata.get(Keys.Split.LLM_KV_SPLIT_COUNT, 0)
    match = SPLIT.fullmatch(path.name)
    if count in (0, 1) or match is None:
        return header
    if int(match["number"]) != 1 or int(match["count"]) != count or count > MAX_PARTS:
        raise WeightsError(f"{path} is not the first of {count} parts; point to {part_names(path.name, 1)[0]}")
    tensors = dict(header.tensors)
    for part in range(1, count):
        for name, tensor in _part_tensors(path, part, count).items():
            if name in tensors:
                raise WeightsError(f"{path} and its other parts hold {name!r} twice; fetch the model again")
            tensors[name] = tensor
    metadata = {key: value for key, value in header.metadata.items() if key != Keys.Split.LLM_KV_SPLIT_COUNT}
    return GgufHeader(metadata, tensors, header.places)


def part_path(path: Path, part: int) -> Path:
    """Return the file of a part of the model with the first file `path`; parts count from 0."""
    return path.with_name(part_names(path.name, part + 1)[part]) if part else path


def _part_tensors(first: Path, part: int, count: int) -> dict[str, GgufTensor]:
    path = part_path(first, part)
    if not path.is_file():
        raise WeightsError(f"{path} is missing, which {first.name} needs; put all {count} parts into one folder")
    header = read_header(path)
    numbers = [header.metadata.get(key) for key in (Keys.Split.LLM_KV_SPLIT_NO, Keys.Split.LLM_KV_SPLIT_COUNT)]
    if numbers != [part, count]:
        raise WeightsError(f"{path} is not part {part + 1} of {count}, as its name says; fetch the model again")
    return {name: msgspec.structs.replace(tensor, part=part) for name, tensor in header.tensors.items()}
