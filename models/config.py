"""The sizes and constants of a model, and how they are read from a Hugging Face `config.json`. Reads no weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec

from cluster.shard import Shard
from models.any_family import sizes_of
from models.errors import WeightsError

FAMILIES = ("llama",)
ROPE_SCALINGS = {
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}
Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
SIZES = (
    "n_layers",
    "hidden_size",
    "n_heads",
    "n_kv_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "context_length",
)
_MAX_JSON_BYTES = 64 << 20


class ModelConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What an engine needs to run the model. Names are mostly those of Hugging Face configurations."""

    model_type: str
    n_layers: int
    hidden_size: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    rope_theta: float
    rms_norm_eps: float
    context_length: int
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()
    dtype: Dtype = "float32"
    undescribed: str = ""
    """What exobus has no arithmetic of its own for, as the object of a sentence; "" for a model that it describes."""

    def hf(self) -> dict[str, Any]:
        """Convert to the dictionary of a Hugging Face `config.json`."""
        return {
            "model_type": self.model_type,
            "num_hidden_layers": self.n_layers,
            "hidden_size": self.hidden_size,
            "num_attention_heads": self.n_heads,
            "num_key_value_heads": self.n_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate_size,
            "vocab_size": self.vocab_size,
            "rope_theta": self.rope_theta,
            "rope_scaling": self.rope_scaling,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "max_position_embeddings": self.context_length,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "hidden_act": "silu",
            "bos_token_id": self.bos_token_id,
            "eos_token_id": list(self.eos_token_ids),
            "torch_dtype": self.dtype,
        }


def position_bytes(shard: Shard, n_kv_heads: int, head_dim: int) -> int:
    """Count the bytes of float32 keys and values that one position takes in all layers of a shard."""
    keys_and_values, float32_bytes = 2, 4
    return len(shard.layers) * keys_and_values * n_kv_heads * head_dim * float32_bytes


def read_json(path: Path) -> dict[str, Any]:
    """Read the JSON object in a small file of a model folder. Raises WeightsError."""
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise WeightsError(f"{path} is far too large for a configuration file; fetch the model again")
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror}); fetch the model again") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not valid JSON; delete it and fetch the model again") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} does not hold a JSON object; delete it and fetch the model again")
    return value


def config_from_folder(folder: Path) -> ModelConfig:
    """Read `config.json`, and the end-of-sequence ids of `generation_config.json` if it exists. Raises WeightsError."""
    path = folder / "config.json"
    if not path.is_file():
        hint = "a folder that holds a whole model" if not any(folder.glob("*.gguf")) else "the .gguf file in it"
        raise WeightsError(f"{folder} has no config.json; point to {hint}")
    generation = folder / "generation_config.json"
    return config_from_hf(read_json(path), read_json(generation) if generation.is_file() else {}, str(path))


def config_from_hf(config: Mapping[str, Any], generation: Mapping[str, Any], where: str) -> ModelConfig:
    """Convert the dictionaries of a Hugging Face repository. Raises WeightsError, which names the file `where`."""
    if undescribed := _undescribed(config):
        eos_token_ids = _token_ids(generation.get("eos_token_id"), config.get("eos_token_id"))
        return checked_config(sizes_of(config) | {"undescribed": undescribed, "eos_token_ids": eos_token_ids}, where)
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    even_head_dim = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    rope_theta, rope_scaling = _rope(config)
    bos = config.get("bos_token_id")
    values = {
        "model_type": config["model_type"],
        "n_layers": config.get("num_hidden_layers"),
        "hidden_size": hidden,
        "n_heads": heads,
        "n_kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": config.get("head_dim") or even_head_dim,
        "intermediate_size": config.get("intermediate_size"),
        "vocab_size": config.get("vocab_size"),
        "rope_theta": rope_theta,
        "rope_scaling": rope_scaling,
        "rms_norm_eps": config.get("rms_norm_eps", 1e-6),
        "tie_word_embeddings": config.get("tie_word_embeddings", False),
        "context_length": config.get("max_position_embeddings", 2048),
        "attention_bias": config.get("attention_bias", False),
        "mlp_bias": config.get("mlp_bias", False),
        "bos_token_id": bos[0] if isinstance(bos, list) and bos else bos,
        "eos_token_ids": _token_ids(generation.get("eos_token_id"), config.get("eos_token_id")),
        "dtype": config.get("torch_dtype") or config.get("dtype") or "float32",
    }
    return checked_config(values, where)


def checked_config(values: Mapping[str, Any], where: str) -> ModelConfig:
    """Make a ModelConfig after checking types and ranges. Raises WeightsError, which names `where` and the field."""
    if (dtype := values.get("dtype", "float32")) not in DTYPES:
        raise WeightsError(f"{where} stores {dtype}, but exobus reads {', '.join(DTYPES)}; pick another model")
    try:
        config = msgspec.convert(values, ModelConfig)
    except msgspec.ValidationError as error:
        raise WeightsError(f"{where} is not a usable model configuration: {error}") from error
    for name in SIZES:
        if not 0 < getattr(config, name) < 1 << 31:
            raise WeightsError(f"{where} gives {name} as {getattr(config, name)}; fetch the model again")
    if config.undescribed:
        return config
    if config.n_heads % config.n_kv_heads or config.head_dim % 2:
        raise WeightsError(f"{where} has heads that do not divide evenly; fetch the model again")
    _check_rope(config, where)
    return config


def _undescribed(config: Mapping[str, Any]) -> str:
    """Say what exobus does not compute by itself: another family, quantized weights, an activation. Else return ""."""
    family = config.get("model_type")
    if family not in FAMILIES:
        return f"models of the family {family!r}"
    if config.get("quantization_config") or config.get("quantization"):
        return "repositories of quantized weights"
    activation = config.get("hidden_act", "silu")
    return "" if activation == "silu" else f"the activation {activation!r}"


def _check_rope(config: ModelConfig, where: str) -> None:
    if not (0 < config.rope_theta < math.inf and 0 < config.rms_norm_eps < 1):
        raise WeightsError(f"{where} gives a rope_theta or rms_norm_eps out of range; fetch the model again")
    scaling = config.rope_scaling or {"rope_type": "linear", "factor": 1.0}
    numbers = ROPE_SCALINGS.get(str(scaling.get("rope_type")))
    if numbers is None:
        kind = scaling.get("rope_type")
        known = ", ".join(ROPE_SCALINGS)
        raise WeightsError(f"{where} asks for rope scaling {kind!r}, and exobus has {known}; pick another model")
    for name in numbers:
        if not isinstance(scaling.get(name), int | float) or not 0 < scaling[name] < 1e9:
            raise WeightsError(f"{where} gives no usable {name} for its rope scaling; fetch the model again")


def _rope(config: Mapping[str, Any]) -> tuple[float, dict[str, Any] | None]:
    """Read theta and scaling from `rope_theta` and `rope_scaling`, or from the newer `rope_parameters`."""
    given = config.get("rope_parameters") or config.get("rope_scaling")
    parameters = dict(given) if isinstance(given, dict) else {}
    theta = parameters.pop("rope_theta", None) or config.get("rope_theta") or 10000.0
    kind = parameters.pop("type", None)
    kind = parameters.get("rope_type") or kind or (None if "factor" in parameters else "default")
    return theta, None if kind == "default" else {**parameters, "rope_type": kind}


def _token_ids(*sources: Any) -> tuple[int, ...]:
    """Join token ids that are given singly, as lists, or not at all, in order and each once."""
    found: dict[int, None] = {}
    for source in sources:
        ids = source if isinstance(source, list) else [source]
        found |= {token: None for token in ids if isinstance(token, int)}
    return tuple(found)
