"""Transport drivers: TCP, Unix sockets and memory."""
