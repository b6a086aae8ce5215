"""Chat templates: rendering in a sandbox, and child processes with limits that do it."""
