"""What a model is: its layers, each with its attention and feed-forward network, and what is around them.

Everything else follows from this description: the names and shapes of tensors, the bytes of weights and of keys and
values, and what an engine builds. It knows no file format and no engine; `models.families` makes it.
"""

from __future__ import annotations

from typing import Literal, get_args

import msgspec

Dtype = Literal["float32", "bfloat16", "float16"]
DTYPES: tuple[Dtype, ...] = get_args(Dtype)
Activation = Literal["silu", "gelu_tanh", "clipped_swiglu"]

SWIGLU_ALPHA, SWIGLU_LIMIT = 1.702, 7.0
"""The constants of clipped_swiglu: gate * sigmoid(alpha * gate) * (up + 1), with gate cut off above the limit and up on
both sides of it, as in gpt-oss."""


class Linear(msgspec.Struct, frozen=True, tag="linear"):
    """Positions are divided by `factor`."""

    factor: float


class Llama3(msgspec.Struct, frozen=True, tag="llama3"):
    """Only wavelengths that are long in the original context are stretched, as in Llama 3.1."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


class Yarn(msgspec.Struct, frozen=True, tag="yarn"):
    """YaRN (Peng et al., 2023): wavelengths are stretched along a ramp from `beta_fast` to `beta_slow` rotations.

    Without `truncate` the ramp begins and ends between two planes. Queries and keys are multiplied with
    `attention_factor`.
    """

    factor: float
    original_context: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool


class LongRope(msgspec.Struct, frozen=True, tag="longrope"):
    """LongRoPE (Ding et al., 2024): each plane's frequency has a divisor of its own.

    Queries and keys are multiplied with `attention_factor`.
    """

    divisors: tuple[float, ...]
    attention_factor: float


RopeScaling = Linear | Llama3 | Yarn | LongRope


class Rope(msgspec.Struct, frozen=True):
    """Rotary position embedding of the first `dims` dimensions of each head, in half-split planes."""

    theta: float
    dims: int
    scaling: RopeScaling | None = None


class Attention(msgspec.Struct, frozen=True, kw_only=True):
    """Grouped-query attention.

    `window` is how many positions a row sees, its own included; None is all up to its own. With `qk_norm` each head of
    queries and keys is normed before it is rotated. `sinks` are logits, one for each head, that take part in the
    softmax and add nothing. `softcap` bounds the other logits: softcap * tanh(logits / softcap).
    """

    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    rope: Rope | None
    window: int | None = None
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False
    sinks: bool = False
    softcap: float | None = None


class Mlp(msgspec.Struct, frozen=True, tag="mlp"):
    """A gated feed-forward network: down(activation(gate) * up)."""

    inner: int
    activation: Activation = "silu"
    bias: bool = False


class Experts(msgspec.Struct, frozen=True, tag="experts"):
    """`top_k` of `count` feed-forward networks for each row, chosen by a router and added with its weights.

    The weights are the softmax over the chosen ones' logits or, without `norm_top_k`, over all.
    """

    count: int
    top_k: int
    expert: Mlp
    norm_top_k: bool = True
    router_bias: bool = False


class Layer(msgspec.Struct, frozen=True):
    """One block. With `post_norms` the outputs of both parts are normed before they are added."""

    attention: Attention
    feed_forward: Mlp | Experts
    post_norms: bool = False


class Architecture(msgspec.Struct, frozen=True, kw_only=True):
    """A whole model. Its layers have the same numbers of heads and the same head size.

    `norm_offset` is added to the stored weights of all norms. The embedding is multiplied with `embedding_scale`, what
    a block adds with `residual_scale`, and the logits with `logit_scale`, after which `logit_softcap` bounds them.
    """

    family: str
    layers: tuple[Layer, ...]
    hidden_size: int
    vocab_size: int
    context_length: int
    norm_eps: float
    norm_offset: float = 0.0
    embedding_scale: float = 1.0
    residual_scale: float = 1.0
    logit_scale: float = 1.0
    logit_softcap: float | None = None
    tied_embedding: bool = False
    dtype: Dtype = "float32"

    @property
    def n_layers(self) -> int:
        """How many layers the model has."""
        return len(self.layers)

    @property
    def heads(self) -> Attention:
        """The attention of the first layer, for what is the same in all: heads, kv_heads and head_dim."""
        return self.layers[0].attention
