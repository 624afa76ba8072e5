"""The lab: whole networks in one process on virtual time, reproducible by seed. Only the links are simulated."""
