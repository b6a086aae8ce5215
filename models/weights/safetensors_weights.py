"""A folder of safetensors files, read tensor by tensor. Every header is checked before it is used.

The files are read, not mapped: mapped pages count as resident memory, and a file that is cut short while it is mapped
kills the process. The `safetensors` package is not used, since its numpy interface has no bfloat16.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from ml_dtypes import bfloat16, float8_e4m3fn

from cluster.shard import whole
from models.architecture import Architecture
from models.config import folder_settings, read_json
from models.errors import WeightsError
from models.settings import Settings
from models.stored_model import StoredModel, model_of
from models.weights import float8
from models.weights.checkpoint import HEAD
from models.weights.layer_names import has_head
from models.weights.layout import Place, check_shapes, located, safetensors_places
from models.weights.repository import Repository
from models.weights.stored import StoredTensor

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_MAX_HEADER_BYTES = 16 << 20
_DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(bfloat16)}
_DTYPES |= {float8.KIND: np.dtype(float8_e4m3fn)}
_ITEM_BYTES = {kind: dtype.itemsize for kind, dtype in _DTYPES.items()} | {
    "U32": 4,
    "I32": 4,
    "I64": 8,
    "U16": 2,
    "I16": 2,
    "U8": 1,
    "I8": 1,
    "BOOL": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
}
"""The kinds that a file may hold. Those that are no floats are codes of quantized weights, and are not read here."""
_FILE_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,200}\.safetensors")


class SafetensorsTensor(StoredTensor, frozen=True, kw_only=True):
    """Where one tensor lies in the file `path`. `dtype` is a key of `_ITEM_BYTES`; 8-bit floats have a scaling."""

    path: Path
    dtype: str
    scaling: float8.Scaling[SafetensorsTensor] | None = None


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


class SafetensorsWeights:
    """A config.json with one or more *.safetensors files. Only tensors in files that are present can be read."""

    def __init__(self, folder: Path) -> None:
        self._model = folder_model(folder)
        self.settings = self._model.settings.values
        self._folder = folder
        found = _places(self._model)
        stored: dict[str, SafetensorsTensor] = {}
        # A folder without an index holds a single file.
        index = index_files(folder) if (folder / INDEX).is_file() else {}
        present = [folder / file for file in sorted(set(index.values()) or {SINGLE}) if (folder / file).is_file()]
        if not present:
            raise WeightsError(f"{folder} holds no safetensors file; fetch the model again")
        for path in present:
            tensors = read_header(path)
            check_shapes(found, tensors, path)
            for name in tensors.keys() & stored.keys():
                raise _damaged(path, f"holds {name!r}, which another file of the model holds too")
            stored |= tensors
        self.repository = Repository(folder, frozenset(stored) | index.keys(), self._model)
        self._tensors: dict[str, tuple[SafetensorsTensor, ...]] = {name: (place,) for name, place in stored.items()}
        if not self._model.undescribed:
            self._tensors = located(found, _with_scales(stored))

    @property
    def architecture(self) -> Architecture:
        """What the model is. Raises WeightsError if exobus does not describe it."""
        return self._model.architecture

    def names(self) -> frozenset[str]:
        """List the tensors that lie wholly in the files that are present."""
        return frozenset(self._tensors)

    def tensor(self, name: str) -> np.ndarray:
        """Read a tensor into a new float32 array. Raises WeightsError if it is not in the files present."""
        parts = [_scaled(stored) for stored in self._tensors.get(name, ())]
        if not parts:
            raise WeightsError(f"{self._folder} holds no tensor {name!r}; fetch the model again")
        return parts[0] if len(parts) == 1 else np.stack(parts)

    def blocks(self, name: str) -> None:
        """Return None: these files hold no quantized matrix."""

    def form(self, name: str) -> None:
        """Return None, as `blocks` does."""


def folder_model(folder: Path) -> StoredModel:
    """Describe the model in a folder. Its weights, if any are there, decide whether it has a head of its own.

    In a fine-tune `tie_word_embeddings` may be the base model's, and a head that is there counts. Raises WeightsError,
    also if the head that the configuration promises is in no file.
    """
    settings = folder_settings(folder)
    listing = folder / INDEX if (folder / INDEX).is_file() else folder / SINGLE
    if not listing.is_file():
        return model_of(settings)
    return model_with(settings, index_files(folder) if listing.name == INDEX else read_header(listing), str(listing))


def model_with(settings: Settings, names: Collection[str], where: str) -> StoredModel:
    """Describe a model by its settings and the names of its tensors, which stand in `where`, as `folder_model` does."""
    model, tied = model_of(settings), not has_head(names)
    if tied and not model.undescribed and not model.sizes.tied_embedding:
        raise WeightsError(
            f"{where} has no {HEAD}, though config.json says that the model has a head of its own "
            "(tie_word_embeddings is false); fetch the whole model, or pick another"
        )
    return model_of(settings.replaced(tie_word_embeddings=tied))


def index_files(folder: Path) -> dict[str, str]:
    """Map tensor names to file names, from the folder's index. Raises WeightsError, also for unsafe file names."""
    return checked_index(read_json(folder / INDEX), str(folder / INDEX))


def checked_index(index: Mapping[str, Any], where: str) -> dict[str, str]:
    """Return the map of an index that stands in `where`. Raises WeightsError, also for unsafe file names."""
    mapping = index.get("weight_map")
    if not isinstance(mapping, dict):
        raise WeightsError(f"{where} has no weight_map; delete it and fetch the model again")
    for file in mapping.values():
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise WeightsError(f"{where} names the file {file!r}, which exobus will not open; pick another model")
    return mapping


def read_header(path: Path) -> dict[str, SafetensorsTensor]:
    """Locate the tensors of one file. Raises WeightsError if its header contradicts the file or itself."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            text = file.read(header_length(path, file.read(8), size))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); fetch the model again") from error
    return header_tensors(path, text, size)


def header_length(path: Path, first: bytes, file_size: int) -> int:
    """Read from a file's first 8 bytes how long its header is. Raises WeightsError if it cannot be so long."""
    length = int.from_bytes(first[:8], "little")
    if file_size < 8 or length > min(file_size - 8, _MAX_HEADER_BYTES):
        raise _damaged(path, f"claims a header of {length} bytes in a file of {file_size}")
    return length


def header_tensors(path: Path, text: bytes, file_size: int) -> dict[str, SafetensorsTensor]:
    """Locate the tensors of a file of this size by its header, which begins at byte 8. Raises as `read_header` does."""
    tensors = {
        name: _stored(path, name, entry, 8 + len(text), file_size) for name, entry in _entries(path, text).items()
    }
    _check_overlaps(path, tensors)
    return tensors


def _entries(path: Path, text: bytes) -> dict[str, _Entry]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise _damaged(path, "names a tensor twice")
        return dict(pairs)

    try:
        header = json.loads(text, object_pairs_hook=unique)
        if isinstance(header, dict):
            header.pop("__metadata__", None)
        return msgspec.convert(header, dict[str, _Entry])
    except (ValueError, RecursionError) as error:
        raise _damaged(path, "has a header that is not of the safetensors format") from error


def _stored(path: Path, name: str, entry: _Entry, data_start: int, file_size: int) -> SafetensorsTensor:
    begin, end = entry.data_offsets
    if not 0 <= begin <= end <= file_size - data_start:
        raise _damaged(path, f"places {name!r} outside the file")
    if entry.dtype not in _ITEM_BYTES:
        raise WeightsError(
            f"{path} stores {name!r} as {entry.dtype}, but exobus reads {', '.join(_ITEM_BYTES)}; pick another model"
        )
    if min(entry.shape, default=1) < 0 or math.prod(entry.shape) * _ITEM_BYTES[entry.dtype] != end - begin:
        raise _damaged(path, f"gives {name!r} a shape that does not fit its bytes")
    return SafetensorsTensor(
        path=path, dtype=entry.dtype, shape=entry.shape, offset=data_start + begin, nbytes=end - begin
    )


def _check_overlaps(path: Path, tensors: dict[str, SafetensorsTensor]) -> None:
    end = 0
    for stored in sorted(tensors.values(), key=lambda stored: (stored.offset, stored.nbytes)):
        if stored.offset < end:
            raise _damaged(path, "lays tensors over one another")
        end = stored.offset + stored.nbytes


def _places(model: StoredModel) -> dict[str, Place]:
    """Map canonical names to where the files have them; none of a model that exobus does not describe."""
    if model.undescribed:
        return {}
    architecture = model.architecture
    return safetensors_places(architecture, whole(architecture.family, architecture.n_layers))


def _with_scales(stored: dict[str, SafetensorsTensor]) -> dict[str, SafetensorsTensor]:
    """Give tensors of 8-bit floats their scales. Raises WeightsError for a scale of a shape that is not known."""
    found = {}
    for name, tensor in stored.items():
        scale = next((stored[scale] for scale in float8.scale_names(name) if scale in stored), None)
        if tensor.dtype == float8.KIND and scale is not None:
            if not float8.scale_fits(tensor.shape, scale.shape):
                raise _damaged(scale.path, f"holds a scale of {name} as {list(scale.shape)}, which does not fit it")
            rows = tensor.shape[0]
            scaling = float8.Scaling(scale, tensor.offset, rows, tensor.nbytes // rows)
            tensor = msgspec.structs.replace(tensor, scaling=scaling)
        found[name] = tensor
    return found


def _scaled(stored: SafetensorsTensor) -> np.ndarray:
    """Read a tensor as float32, multiplied with its scale. Raises WeightsError, also for 8-bit floats without one."""
    values = _float32(stored).reshape(stored.shape)
    if stored.dtype != float8.KIND:
        return values
    if stored.scaling is None:
        raise _damaged(stored.path, "holds 8-bit floats without a scale")
    scaling = stored.scaling
    first = (stored.offset - scaling.offset) // scaling.row_bytes
    scale = _float32(scaling.scale).reshape(scaling.scale.shape)
    return float8.scaled(values, scale, first, scaling.rows)


def _float32(stored: SafetensorsTensor) -> np.ndarray:
    """Read a tensor as flat float32. Raises WeightsError."""
    if stored.dtype not in _DTYPES:
        raise WeightsError(
            f"{stored.path} stores {stored.dtype}, and all engines but mlx read {', '.join(_DTYPES)} only; choose mlx"
        )
    try:
        data = np.fromfile(stored.path, np.uint8, stored.nbytes, offset=stored.offset)
    except OSError as error:
        raise WeightsError(f"{stored.path} cannot be read ({error.strerror}); fetch the model again") from error
    if data.size != stored.nbytes:
        raise _damaged(stored.path, "was cut short while it was read")
    values: np.ndarray = data.view(_DTYPES[stored.dtype]).astype(np.float32, copy=False)
    return values


def _damaged(path: Path, what: str) -> WeightsError:
    return WeightsError(f"{path} {what}: it is damaged, delete it and fetch the model again")
