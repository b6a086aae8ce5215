"""Tests of `bus.peering`."""
