"""`exobus cluster …`: make a cluster, invite nodes to it, and manage its members."""
