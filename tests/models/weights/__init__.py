"""Tests of models.weights."""
