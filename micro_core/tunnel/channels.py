"""The channels on which a node listens: one acceptor of sessions, and any number of receivers of messages per channel."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from micro_core.contract.driver import Counters
from micro_core.contract.errors import Conflict
from micro_core.contract.tunnel import ChannelListener, MessageReceiver, Session


class ListeningLink(Protocol):
    """A link, as far as it announces channels to its peer."""

    def listen(self, channel: str) -> None:
        """Ask the peer for the multicast messages of `channel`."""
        ...

    def unlisten(self, channel: str) -> None:
        """Ask the peer to send no more multicast messages of `channel`."""
        ...


@dataclass(slots=True)
class _Listener:
    """Implements `ChannelListener`."""

    channel: str
    _remove: Callable[[], None]

    def close(self) -> None:
        """Stop listening."""
        self._remove()


class Channels:
    """The listeners of one tunnel. `current_links()` returns the links on which a new channel is announced."""

    def __init__(self, current_links: Callable[[], Iterable[ListeningLink]], counters: Counters) -> None:
        self._current_links = current_links
        self._counters = counters
        self._acceptors: dict[str, Callable[[Session], None]] = {}
        self._receivers: dict[str, list[MessageReceiver]] = {}

    def listen(self, channel: str, accept: Callable[[Session], None]) -> ChannelListener:
        """Accept sessions on `channel`. Raises Conflict when the channel has a listener already."""
        if channel in self._acceptors:
            raise Conflict(f"channel {channel} has a listener already")
        self._acceptors[channel] = accept
        return _Listener(channel, lambda: self._acceptors.pop(channel, None) and None)

    def subscribe(self, channel: str, receive: MessageReceiver) -> ChannelListener:
        """Receive the multicast and broadcast messages of `channel`."""
        receivers = self._receivers.setdefault(channel, [])
        if not receivers:
            for link in self._current_links():
                link.listen(channel)
        receivers.append(receive)
        return _Listener(channel, lambda: self._unsubscribe(channel, receive))

    def announce(self, link: ListeningLink) -> None:
        """Announce to the peer of a new link the channels that have receivers here."""
        for channel in self._receivers:
            link.listen(channel)

    def accept(self, channel: str, session: Session) -> bool:
        """Hand a session of a peer to the listener. Return False when the channel has none (counted)."""
        accept = self._acceptors.get(channel)
        if accept is None:
            self._counters.add("tunnel_sessions_refused")
            return False
        accept(session)
        return True

    def deliver(self, peer_id: str, channel: str, payload: bytes) -> None:
        """Hand a message of a peer to the receivers. A message without receivers is dropped and counted."""
        receivers = self._receivers.get(channel)
        if not receivers:
            self._counters.add("tunnel_messages_unwanted")
            return
        for receive in list(receivers):
            receive(peer_id, payload)

    def _unsubscribe(self, channel: str, receive: MessageReceiver) -> None:
        receivers = self._receivers.get(channel, [])
        if receive in receivers:
            receivers.remove(receive)
            if not receivers:
                del self._receivers[channel]
                for link in self._current_links():
                    link.unlisten(channel)
