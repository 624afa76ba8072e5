"""The `micro` command. `commands/` holds what `--help` shows; the other modules hold what the commands do."""
