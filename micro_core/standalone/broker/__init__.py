"""The broker of a site as a process of its own, and its driver `broker:service`."""
