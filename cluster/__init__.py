"""Pure values and decisions about a cluster: nodes, links, members, join codes, partitions, placement."""
