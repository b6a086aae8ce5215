"""Tests of `bus.dataplane`."""
