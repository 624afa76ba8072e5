"""The parts of a node as services of their own, each in its process, and the drivers by which they are used."""
