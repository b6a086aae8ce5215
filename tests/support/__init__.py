"""Rigs: what several tests share."""
