"""Who my neighbours are: finding nodes, keeping links to a few of them, and the graph to three hops."""
