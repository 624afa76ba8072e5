"""The lab: whole networks in one process, on virtual time, from one seed. The same node code; only the wires are ours."""
