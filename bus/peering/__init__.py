"""Between hubs: links, joining, authentication, permissions."""
