"""The ChatGPT-compatible gateway of a node: HTTP on one side, the bus and the data plane on the other."""
