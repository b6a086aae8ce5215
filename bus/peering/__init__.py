"""How hubs are linked: joining, authentication, permissions, links and the members of a cluster."""
