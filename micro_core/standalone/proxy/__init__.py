"""The proxy of a node as a process of its own."""
