"""Tests of `ring`."""
