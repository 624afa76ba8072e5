"""The components of a node as processes of their own, and the clients that use them."""
