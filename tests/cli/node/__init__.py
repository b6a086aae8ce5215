"""Tests of `cli.node`."""
