"""Registry drivers: machine-local files, and memory."""
