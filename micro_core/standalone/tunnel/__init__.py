"""The tunnel of a node as a process of its own: IPC server, client and the protocol between them."""
