"""Which models are plain Llamas, for engines that run no others."""

from __future__ import annotations

from models.architecture import Architecture, Attention, Layer, Mlp


def is_plain(architecture: Architecture) -> bool:
    """Return whether all layers are alike, and have nothing that Llama has not."""
    first = architecture.layers[0]
    heads, inner = first.attention, first.feed_forward
    if not isinstance(inner, Mlp) or heads.rope is None or heads.rope.dims != heads.head_dim:
        return False
    plain = Attention(
        heads=heads.heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        scale=heads.head_dim**-0.5,
        rope=heads.rope,
        qkv_bias=heads.qkv_bias,
        out_bias=heads.out_bias,
    )
    around = (architecture.embedding_scale, architecture.residual_scale, architecture.logit_scale)
    others = architecture.norm_offset, architecture.logit_softcap
    layer = Layer(plain, Mlp(inner.inner, "silu", inner.bias))
    return set(architecture.layers) == {layer} and around == (1.0, 1.0, 1.0) and others == (0.0, None)
