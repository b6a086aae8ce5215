"""The MLX engine: mlx-lm's own model classes, cut into stages with ghost layers."""
