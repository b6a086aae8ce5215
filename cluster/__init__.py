"""Pure decisions about the cluster: who is in it, what it can do, what runs where. No sockets here."""
