"""The `exobus` command: one file or folder for each command; nothing heavy is imported before a command runs."""
