"""The `micro` command. `commands/` contains the options and help texts; the other modules contain the implementation."""
