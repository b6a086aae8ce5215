"""From a generation request to sessions and deltas; knows no HTTP and no API family."""
