"""Tests of `cli.cluster`."""
