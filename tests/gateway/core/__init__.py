"""Tests of `gateway.core`."""
