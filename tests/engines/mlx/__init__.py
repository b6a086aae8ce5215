"""Tests of the MLX engine."""
