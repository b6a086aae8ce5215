"""The numbers of the design, measured on real nodes: `python -m tests.bench`. No slow figure makes a run fail."""
