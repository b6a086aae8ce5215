"""Tests of whole nodes: real processes on loopback."""
