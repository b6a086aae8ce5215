"""Tests of the numpy engine."""
