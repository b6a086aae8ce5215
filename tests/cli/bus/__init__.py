"""Tests of `cli.bus`."""
