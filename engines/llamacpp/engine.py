"""The llama.cpp engine. `shard_file` cuts the model, `context` runs it and `shard_model` keeps its sequences."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar

from gguf import GGMLQuantizationType

from cluster.capabilities import EngineCapability
from cluster.shard import Shard
from engines.base import SlotEngine
from engines.engine import KV_BYTES
from engines.errors import EngineError
from engines.llamacpp.kept_rows import kept_rows
from engines.llamacpp.library import library
from engines.llamacpp.loaded_model import LoadedModel
from engines.llamacpp.row_check import can_be_exact, exact_rows
from engines.llamacpp.shard_file import shard_file
from engines.llamacpp.shard_model import LlamaCppShardModel, OwnContexts, SharedContext, SlotCache
from engines.llamacpp.weights_file import ARCHITECTURE, write_weights
from models.weights.gguf.header import GgufHeader
from models.weights.gguf.parts import read_model_header
from models.weights.gguf.sizes import GgufSizes, gguf_sizes
from models.weights.reader import Weights

MAX_KV_BYTES = 1 << 30
"""The most memory for the keys and values of sessions, unless LONG positions take more: the library takes all of it
when it loads, whether or not it is used. `--kv-memory` bounds it as well."""

LONG = 16384
"""Positions of a long session, or of a shorter context, that a stage has room for if it was given the memory."""

_REPACKED = frozenset(
    {
        GGMLQuantizationType.Q4_0,
        GGMLQuantizationType.Q4_K,
        GGMLQuantizationType.IQ4_NL,
        GGMLQuantizationType.MXFP4,
    }
)
"""The types that llama.cpp stores in another order on processors with AVX2 or NEON (`ggml/src/ggml-cpu/repack.cpp`)."""

_STEP = 256  # the library rounds its cells up to a multiple of this


class LlamaCppEngine(SlotEngine[SlotCache]):
    """Runs GGUF files of many architectures as llama.cpp itself does: keys and values are float16, and activations are
    rounded to 8 bits if the file is quantized. Hidden states stay float32, so a split model has the bits of the whole
    one in llama.cpp. An `invariant` one gives each slot a context of its own.
    """

    name: ClassVar[str] = "llamacpp"

    def __init__(self, *, invariant: bool = False) -> None:
        super().__init__(invariant=invariant)
        self._library = library()
        self._opened: tuple[LoadedModel, LlamaCppShardModel] | None = None
        self._cells = 0

    def load(self, shard: Shard, weights: Path, kv_bytes: int = KV_BYTES) -> None:
        """Load a shard of a GGUF file. Half of `kv_bytes` is for sessions, the other half for stored prefixes.

        Raises EngineError for a folder of safetensors, a shard that does not fit the model or an architecture that
        cannot be cut, and WeightsError for a file that cannot be read.
        """
        if weights.is_dir():
            raise EngineError(f"the llamacpp engine reads GGUF files and {weights} is a folder; try mlx or onnx")
        header = read_model_header(weights, skipped="tokenizer.")
        sizes = gguf_sizes(header, weights)
        self.check_fits(shard, sizes.n_layers)
        copied = self._library.device == "CPU" and _is_repacked(header)
        file = shard_file(weights, header, shard)
        model = self._open(file, sizes, shard, kv_bytes, copied=copied)
        if can_be_exact(self._library.device):
            self.exact_rows = kept_rows(file, lambda: exact_rows(model))
        self.hold(model)

    def build(self, shard: Shard, weights: Weights) -> LlamaCppShardModel:
        """Load open weights from a file that is written for it. Raises EngineError for a shard with an end."""
        model, heads = weights.architecture, weights.architecture.heads
        sizes = GgufSizes(
            architecture=ARCHITECTURE,
            n_layers=model.n_layers,
            hidden_size=model.hidden_size,
            vocab_size=model.vocab_size,
            context_length=model.context_length,
            heads=(heads.heads,) * model.n_layers,
            kv_heads=(heads.kv_heads,) * model.n_layers,
            kv_widths=(2 * heads.kv_heads * heads.head_dim,) * model.n_layers,
            window=0,
        )
        with TemporaryDirectory() as folder:
            path = Path(folder) / "shard.gguf"
            write_weights(path, weights, shard)
            return self._open(path, sizes, shard, KV_BYTES)

    def _open(
        self, path: Path, sizes: GgufSizes, shard: Shard, kv_bytes: int, *, copied: bool = False
    ) -> LlamaCppShardModel:
        """Load a file that holds the shard alone."""
        self._cells = _cells(sizes, shard, kv_bytes)
        file = LoadedModel(self._library, path, has_head=shard.is_last, copied=copied)
        try:
            model: LlamaCppShardModel = (
                OwnContexts(sizes, shard, file) if self.invariant else SharedContext(sizes, shard, file, self._cells)
            )
        except EngineError:
            file.close()
            raise
        self._opened = file, model
        return model

    def positions(self, kv_bytes: int) -> int:
        """Return the cells, which were made when the shard was loaded, unless each slot has its own."""
        return self._cells

    def close(self) -> None:
        """Free the model, which the library holds in memory."""
        if self._opened is not None:
            file, model = self._opened
            model.close()
            file.close()
        super().close()

    def capabilities(self) -> EngineCapability:
        """Return llama.cpp's version, and the kind of its first GPU or CPU."""
        return EngineCapability(name=self.name, version=self._library.version, device=self._library.device)


def _is_repacked(header: GgufHeader) -> bool:
    """Return whether at least half of the weights are copied into another order when the library loads them."""
    repacked = sum(tensor.nbytes for tensor in header.tensors.values() if tensor.kind in _REPACKED)
    return 2 * repacked >= sum(tensor.nbytes for tensor in header.tensors.values())


def _cells(sizes: GgufSizes, shard: Shard, kv_bytes: int) -> int:
    """Return how many positions to make room for: as many as `kv_bytes` can hold twice, within limits."""
    each = sizes.of(shard).position_bytes
    most = max(MAX_KV_BYTES // each, min(sizes.context_length, LONG))
    return max(min(kv_bytes // (2 * each), most) // _STEP * _STEP, _STEP)
