"""Tests of the tinygrad engine."""
