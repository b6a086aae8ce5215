"""The MLX engine: mlx-lm's own model classes, with stubs for the layers of other stages."""

from engines.mlx.blas import load_fast_blas

FAST_BLAS = load_fast_blas()
"""The library that replaces MLX's own BLAS on a CPU, or None. Loaded before any module of this package imports MLX."""
