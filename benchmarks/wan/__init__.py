"""Four clouds of three real nodes, in network namespaces that a relay joins: faults, and how fast the network recovers."""
