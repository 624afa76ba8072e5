"""micro: a services network for Python."""
