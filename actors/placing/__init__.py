"""What a placer does besides placing: it makes room, and ends instances."""
