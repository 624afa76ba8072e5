"""The registry of a site as a process of its own, and its driver `registry:service`."""
