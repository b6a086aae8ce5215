"""Serving a ring: stages and their roles, scheduling, batching, sessions, admission, prefix cache, drafts."""
