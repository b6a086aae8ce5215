"""Hostile bytes for whatever decodes bytes of others."""
