"""The router of a node as a process of its own, and the copy of its route table in other processes."""
