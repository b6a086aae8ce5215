"""Tests of models.templates."""
