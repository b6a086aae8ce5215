"""How nodes find each other: one strategy a file. They find join ports; linking and trust belong to the hub."""
