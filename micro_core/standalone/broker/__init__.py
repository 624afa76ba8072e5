"""The driver `broker:service` for a broker that runs as a process of its own."""
