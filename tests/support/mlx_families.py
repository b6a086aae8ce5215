"""Tiny random models of several families, split at every cut and compared with mlx-lm's own unsplit model.

Run as `python -m tests.support.mlx_families FOLDER`, since it imports mlx_lm. Prints JSON: for each family what its
engine says, and for each cut the largest difference of a logit. With a family as a second argument it only writes that
one, for the tiny tokenizer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from cluster.shard import Shard, whole
from engines.engine import FloatArray
from engines.errors import EngineError
from engines.mlx.engine import MlxEngine
from engines.mlx.family_model import open_file_limit_kept
from models.weights.layer_names import layer_of, needed_names
from models.weights.layout import safetensors_places, stored_names
from models.weights.safetensors_weights import INDEX, folder_model, index_files
from tests.support.engines import Ring, cut, tokens
from tests.support.models import TINY_VOCAB

CHUNKS = ([5, 25, 17, 29, 3], [12], [14], [20])
LAYERS = 4
COMMON: dict[str, Any] = {
    "num_hidden_layers": LAYERS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "vocab_size": 64,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 128,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16, "norm_topk_prob": True}
LINEAR = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
LLAMA = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
FAMILIES: Mapping[str, dict[str, Any]] = {
    "gemma3": {
        "model_type": "gemma3",
        "text_config": COMMON | {"model_type": "gemma3_text", "sliding_window": 4, "sliding_window_pattern": 3},
    },
    "gpt-oss": {"model_type": "gpt_oss", "sliding_window": 4, "num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen3-moe": MOE | {"model_type": "qwen3_moe", "decoder_sparse_step": 1, "mlp_only_layers": [1]},
    "qwen3-next": MOE
    | LINEAR
    | {
        "model_type": "qwen3_next",
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "shared_expert_intermediate_size": 16,
        "partial_rotary_factor": 0.5,
        "full_attention_interval": 2,
    },
    "deepseek-v3": MLA
    | {
        "model_type": "deepseek_v3",
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "n_group": 2,
        "topk_group": 1,
        "moe_intermediate_size": 16,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 1,
    },
    "mistral": {"model_type": "mistral"},
    "mistral-16bit": {"model_type": "mistral", "torch_dtype": "bfloat16"},
    "glm4": {"model_type": "glm4", "attention_bias": True, "partial_rotary_factor": 0.5},
    "newer-rope": {"model_type": "glm4", "attention_bias": True, "partial_rotary_factor": 0.5, "rope_theta": 500.0},
    "gemma4": {
        "model_type": "gemma4_text",
        "sliding_window": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": 64,
        "global_head_dim": 8,
    },
    "gemma3n": {
        "model_type": "gemma3n",
        "text_config": COMMON
        | {
            "model_type": "gemma3n_text",
            "intermediate_size": [48] * LAYERS,
            "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 64,
            "hidden_size_per_layer_input": 8,
            "altup_active_idx": 0,
            "altup_coef_clip": None,
            "altup_num_inputs": 4,
            "altup_correct_scale": True,
            "laurel_rank": 8,
            "sliding_window": 4,
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "rope_local_base_freq": 10000.0,
            "rope_scaling": None,
            "final_logit_softcapping": 30.0,
        },
    },
    "afm7": {"model_type": "afm7", "hidden_dim": 32, "num_layers": LAYERS, "num_kv_reuse_layers": 2}
    | {"num_heads": 4, "num_kv_heads": 2},
    "hunyuan": {
        "model_type": "hunyuan",
        "attention_bias": False,
        "moe_topk": 2,
        "num_experts": 4,
        "num_shared_expert": 1,
        "use_mixed_mlp_moe": True,
        "use_qk_norm": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
        "moe_intermediate_size": [16] * LAYERS,
    },
    "rwkv7": {"model_type": "rwkv7", "norm_eps": 1e-5}
    | {f"{part}_low_rank_dim": 8 for part in ("a", "v", "gate", "decay")},
    "deepseek-v41": {
        "model_type": "deepseek_v41",
        "q_lora_rank": 16,
        "qk_rope_head_dim": 4,
        "o_groups": 2,
        "o_lora_rank": 8,
        "moe_intermediate_size": 16,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "sliding_window": 8,
        "compress_ratios": [0] * LAYERS,
        "hc_mult": 2,
    },
    "talkie": {"model_type": "talkie"},
    "nanbeige": {"model_type": "nanbeige", "num_loops": 2},
    "looped": {"model_type": "iquestloopcoder", "loop_num": 2, "loop_window_size": 4},
    "llama-4bit": LLAMA | {"tie_word_embeddings": True, "quantization": {"group_size": 32, "bits": 4}},
    "llama-8bit": LLAMA | {"quantization": {"group_size": 64, "bits": 8}},
}


def write_family(folder: Path, name: str, **changes: int) -> Path:
    """Write a repository with a file for each layer and one for the rest, and return its folder.

    `changes` are settings instead of the family's.
    """
    mx, nn, utils = import_module("mlx.core"), import_module("mlx.nn"), import_module("mlx_lm.utils")
    config = COMMON | FAMILIES[name] | changes
    model_class, args_class = utils._get_classes(config)
    mx.random.seed(0)
    model = model_class(args_class.from_dict(config))
    flatten = import_module("mlx.utils").tree_flatten
    noisy = [(key, value + 0.1 * mx.random.normal(value.shape)) for key, value in flatten(model.parameters())]
    model.load_weights(noisy)
    model.set_dtype(getattr(mx, config["torch_dtype"]))
    if "quantization" in config:
        nn.quantize(model, **config["quantization"])
    files: dict[str, dict[str, Any]] = {}
    for key, value in as_published(dict(flatten(model.parameters()))).items():
        files.setdefault(f"model-{layer_of(key)}.safetensors", {})[key] = value
    folder.mkdir(parents=True)
    for file, tensors in files.items():
        mx.save_safetensors(str(folder / file), tensors)
    if name == "newer-rope":
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / INDEX).write_text(json.dumps({"weight_map": {key: file for file in files for key in files[file]}}))
    return folder


def as_published(parameters: dict[str, Any]) -> dict[str, Any]:
    """Give each expert of a Qwen3-MoE a tensor of its own, and Gemma eyes, as in the authors' repositories."""
    published: dict[str, Any] = {}
    if any(key.startswith("language_model.") for key in parameters):
        published = dict.fromkeys(("vision_tower.encoder.layers.0.w", "vision_tower.norm"), parameters[min(parameters)])
    for key, value in parameters.items():
        head, stacked, tail = key.partition(".mlp.switch_mlp.")
        if stacked and value.ndim == 3 and "scales" not in key:
            published |= {f"{head}.mlp.experts.{expert}.{tail}": part for expert, part in enumerate(value)}
        else:
            published[key] = value
    return published


def folder_of(shard: Shard, folder: Path) -> Path:
    """Make a folder that has only the files that a shard needs."""
    part = folder / f"part-{shard.start_layer}-{shard.end_layer}"
    if not part.exists():
        part.mkdir()
        files, model = index_files(folder), folder_model(folder)
        names = needed_names(shard, files)
        if not model.undescribed:
            names = stored_names(safetensors_places(model.architecture, shard))
        for file in {files[name] for name in names} | {"config.json", INDEX}:
            (part / file).symlink_to(folder / file)
    return part


def loaded(shard: Shard, folder: Path) -> MlxEngine:
    """Load a shard from the files that it needs, in the stored dtype as on a GPU."""
    engine = MlxEngine(upcast=False)
    engine.load(shard, folder_of(shard, folder))
    return engine


def unsplit(folder: Path, name: str) -> FloatArray:
    """Compute the logits of every chunk's last row, (chunks, vocab), without a line of exobus."""
    mx, cache_module = import_module("mlx.core"), import_module("mlx_lm.models.cache")
    model, _ = import_module("mlx_lm.utils").load_model(folder, model_config=COMMON | FAMILIES[name])
    cache = cache_module.make_prompt_cache(model)
    rows = [model(mx.array([chunk]), cache=cache)[0, -1].astype(mx.float32) for chunk in CHUNKS]
    return np.stack([np.array(row) for row in rows])


def split(folder: Path, *cuts: int) -> FloatArray:
    """Compute the same with a stage between any two cuts."""
    ring = Ring([loaded(shard, folder) for shard in cut("m", LAYERS, *cuts)])
    position, rows = 0, []
    for chunk in CHUNKS:
        rows.append(ring.step(0, position, chunk))
        position += len(chunk)
    return np.stack(rows)


def restored_difference(engine: MlxEngine) -> float:
    """Compare what follows a copied beginning with what follows the original."""
    engine.forward([tokens(0, 0, CHUNKS[0])])
    engine.restore(1, engine.save(0, 0, len(CHUNKS[0])))
    ours, theirs = (engine.forward([tokens(slot, len(CHUNKS[0]), [9])])[0] for slot in (1, 0))
    return float(np.abs(ours - theirs).max())


def results(folder: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Compare each family."""
    for name in FAMILIES:
        written = write_family(folder / name, name)
        expected, engine = unsplit(written, name), loaded(whole("m", LAYERS), written)
        differences: dict[str, Any] = {}
        for cuts in ((), (1,), (2,), (3,), (1, 2, 3)):
            try:
                differences[str(list(cuts))] = float(np.abs(split(written, *cuts) - expected).max())
            except EngineError as error:
                differences[str(list(cuts))] = str(error)
        yield (
            name,
            {
                "differences": differences,
                "saves": engine.saves,
                "position_bytes": engine.position_bytes,
                "restored": restored_difference(engine) if engine.saves else None,
            },
        )


def refusal(folder: Path, file: str) -> str:
    """Return why a shard does not load from a folder that lacks one of the files."""
    (folder / file).unlink()
    try:
        MlxEngine().load(whole("m", LAYERS), folder)
    except EngineError as error:
        return str(error)
    return "it was loaded"


if __name__ == "__main__":
    with open_file_limit_kept():
        import_module("mlx_lm.utils")
    target, *only = Path(sys.argv[1]), *sys.argv[2:]
    if only:
        write_family(target, only[0], vocab_size=TINY_VOCAB, vocab_size_per_layer_input=TINY_VOCAB)
    else:
        found: dict[str, Any] = dict(results(target))
        missing = {file: refusal(target / "mistral", f"model-{file}.safetensors") for file in ("None", "2")}
        print(json.dumps(found | {"without": missing}))
