"""Tests of models.weights.gguf."""
