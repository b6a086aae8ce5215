"""The MLX engine: mlx-lm's own model classes, cut into stages with ghost layers."""

from engines.mlx.blas import load_fast_blas

FAST_BLAS = load_fast_blas()
"""The library that takes the place of MLX's own on a CPU, if there is one. Loaded before a module here imports MLX."""
