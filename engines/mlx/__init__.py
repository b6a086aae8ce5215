"""The MLX engine: mlx-lm's own model classes, with stubs for the layers of other stages."""

from engines.mlx.blas import load_fast_blas

load_fast_blas()  # before any module of this package imports MLX
