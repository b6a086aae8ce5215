"""Fetching model files from where a card says they are: one module for each kind of source."""
