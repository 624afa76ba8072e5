"""The neighbours of a node: discovery, the links that are kept to some of them, and the graph to three hops."""
