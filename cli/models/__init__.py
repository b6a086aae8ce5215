"""`exobus models …`: what can be run, what is here, and what would run where."""
