"""Tests of models.tokenizers."""
