"""The processes of a node: thin shells around the pure modules of `cluster`, `discovery`, `engines` and `models`."""
