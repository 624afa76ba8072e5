"""The connections of a proxy to the proxies of its neighbours: one for each peer and priority, dialled when it is needed."""

from __future__ import annotations

from collections.abc import Callable

from micro_core.contract.tunnel import Priority, Session
from micro_core.rpc.connection import Connection

SessionDialer = Callable[[str, Priority], Session]
"""`dial(peer, priority)`: opens a session on the channel of calls; raises Unreachable when there is no link to the peer."""


class PeerConnections:
    """The connections on which new calls are sent to peers.

    Args:
        dial: Opens a session to a peer.
        connect: Creates the connection of a session.
        retire: Called with a connection that gets no new calls. It must be kept until its calls have ended.
    """

    def __init__(
        self,
        dial: SessionDialer,
        *,
        connect: Callable[[Session], Connection],
        retire: Callable[[Connection], None],
    ) -> None:
        self._dial = dial
        self._connect = connect
        self._retire = retire
        self._connections: dict[tuple[str, Priority], Connection] = {}

    def get(self, peer: str, priority: Priority) -> Connection:
        """Return the connection to a peer. Raises Unreachable when there is no link."""
        connection = self._connections.get((peer, priority))
        if connection is None or connection.is_out_of_stream_ids:
            if connection is not None:
                self._retire(connection)
            connection = self._connections[(peer, priority)] = self._connect(self._dial(peer, priority))
        return connection

    def all(self) -> list[Connection]:
        """Return all connections."""
        return list(self._connections.values())

    def retire_peer(self, peer: str) -> None:
        """Send new calls to a peer on new connections."""
        for key in [key for key in self._connections if key[0] == peer]:
            self._retire(self._connections.pop(key))

    def forget(self, connection: Connection) -> None:
        """Forget a connection that has ended."""
        for key, known in list(self._connections.items()):
            if known is connection:
                del self._connections[key]
