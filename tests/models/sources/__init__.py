"""Tests of models.sources."""
