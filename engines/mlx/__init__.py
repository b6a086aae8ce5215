"""The MLX engine: mlx-lm's own model classes, with stubs for the layers of other stages."""

import os

from engines.mlx.blas import load_fast_blas

load_fast_blas()  # before any module of this package imports MLX

# On CUDA, MLX would round the factors of float32 products to 10 bits of mantissa. It reads the variable once.
os.environ.setdefault("MLX_ENABLE_TF32", "0")
