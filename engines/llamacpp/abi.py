"""What is not in the names of llama.cpp's C API: the layouts of its structs, one table for each version that exobus
knows, and the types of its callbacks. Facts of `include/llama.h` and `ggml/include/ggml*.h`; opens no library.

The library takes its parameters by value, and their layout changes between versions without a new name. So a version
that is not in LAYOUTS is not used at all.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping
from ctypes import c_bool, c_char_p, c_float, c_int, c_int32, c_size_t, c_uint32, c_void_p
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

FLASH_ATTENTION = 1
ROWS_OF_FOUR_POSITIONS = (8, 24, 40)
"""The rope types that take four positions for each row of hidden states: M-RoPE, that of images, and interleaved."""

EvalCallback = ctypes.CFUNCTYPE(c_bool, c_void_p, c_bool, c_void_p)
"""Called with a tensor, whether this asks if its value is wanted, and the user's pointer."""

LogCallback = ctypes.CFUNCTYPE(None, c_int, c_char_p, c_void_p)
"""Called with a level, a text that may be a part of a line, and the user's pointer."""

AbortCallback = ctypes.CFUNCTYPE(None, c_char_p)
"""Called with the failed assertion before the library ends the process."""

_Fields = tuple[tuple[str, Any], ...]


def _fields(kind: Any, names: str) -> _Fields:
    return tuple((name, kind) for name in names.split())


_MODEL: _Fields = (
    *_fields(c_void_p, "devices tensor_buft_overrides"),
    *_fields(c_int32, "n_gpu_layers split_mode load_mode lazy_mode main_gpu"),
    *_fields(c_void_p, "tensor_split progress_callback progress_callback_user_data kv_overrides"),
    *_fields(c_bool, "vocab_only check_tensors use_extra_bufts no_host no_alloc load_mtp"),
)
_CONTEXT_START: _Fields = (
    *_fields(c_uint32, "n_ctx n_batch n_ubatch n_seq_max n_rs_seq n_outputs_max n_outputs_max_per_seq"),
    *_fields(
        c_int32, "n_threads n_threads_batch ctx_type rope_scaling_type pooling_type attention_type flash_attn_type"
    ),
    *_fields(c_float, "rope_freq_base rope_freq_scale yarn_ext_factor yarn_attn_factor yarn_beta_fast yarn_beta_slow"),
    *_fields(c_uint32, "yarn_orig_ctx"),
    *_fields(c_float, "defrag_thold"),
    *_fields(c_void_p, "cb_eval cb_eval_user_data"),
    *_fields(c_int32, "type_k type_v"),
    *_fields(c_void_p, "abort_callback abort_callback_data"),
)
_CONTEXT_END: _Fields = (
    *_fields(c_bool, "embeddings offload_kqv no_perf op_offload swa_full kv_unified"),
    ("samplers", c_void_p),
    ("n_samplers", c_size_t),
    ("ctx_other", c_void_p),
)


class Batch(ctypes.Structure):
    """`llama_batch`: token ids or hidden states, with positions, sequences and which rows give an output."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    ]


@dataclass(frozen=True)
class Layout:
    """The parameter structs of one version. Their fields are those of `llama.h`."""

    model_params: type[ctypes.Structure]
    context_params: type[ctypes.Structure]


def _layout(model: _Fields, context: _Fields) -> Layout:
    room = ("room", ctypes.c_char * 256)  # a library with a longer struct must not write over other memory
    model_params = type("ModelParams", (ctypes.Structure,), {"_fields_": [*model, room]})
    context_params = type("ContextParams", (ctypes.Structure,), {"_fields_": [*context, room]})
    return Layout(model_params, context_params)


LAYOUTS: Mapping[str, Layout] = MappingProxyType(
    {
        "0.5.0": _layout(_MODEL, (*_CONTEXT_START, *_CONTEXT_END)),
        "0.6.0": _layout(_MODEL, (*_CONTEXT_START, ("unused", c_void_p), *_CONTEXT_END)),  # xllamacpp 2026.10.11549
    }
)
"""By the version that the library reports, without its suffix."""

CONTEXT_SENTINELS: Mapping[str, float] = MappingProxyType(
    {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_seq_max": 1,
        "yarn_ext_factor": -1.0,
        "type_k": 1,
        "type_v": 1,
        "embeddings": False,
        "offload_kqv": True,
        "no_perf": True,
        "op_offload": True,
        "swa_full": True,
        "kv_unified": False,
    }
)
MODEL_SENTINELS: Mapping[str, float] = MappingProxyType(
    {"n_gpu_layers": -1, "split_mode": 1, "vocab_only": False, "check_tensors": False, "use_extra_bufts": True}
)
"""What the library's own default parameters must read, or the layout is wrong."""
