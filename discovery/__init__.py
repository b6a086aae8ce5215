"""How nodes hear of each other: one strategy a file. They find end points; links and trust are the hub's."""
