"""Modules without a subject of their own: limits, rate limits, files, text safety, settings."""
