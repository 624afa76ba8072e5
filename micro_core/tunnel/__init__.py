"""Links to other nodes: who they are, and sessions on channels over them."""
