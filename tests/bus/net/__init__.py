"""Tests of `bus.net`."""
