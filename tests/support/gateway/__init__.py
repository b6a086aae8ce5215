"""Rigs around the gateway, and clients of it."""
