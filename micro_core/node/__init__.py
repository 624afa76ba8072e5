"""A node: three planes (links, routing, forwarding), their drivers, and the service of the node."""
