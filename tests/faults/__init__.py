"""Faults on real rings: which there are, what a client saw of each, and what was left over. `make faults` runs them."""
