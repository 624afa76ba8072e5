"""The watch of the links of another process's tunnel."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from micro_core.contract.clock import Clock
from micro_core.contract.errors import Malformed, MicroError, error_from_wire
from micro_core.contract.tunnel import LinkInfo
from micro_core.standalone.tunnel import protocol as ipc
from micro_core.standalone.tunnel.client_socket import IpcSocket

MAX_LINKS = 10_000
"""Links accepted from one tunnel process. Further ones are ignored and counted."""

LinkChangeHandler = Callable[[str, LinkInfo, MicroError | None], None]
"""Called with the kind of the change (`up`, `moved`, `down` or `changed`), the link and the error of a `down`."""


class LinkWatch:
    """Collects the links up to the `synced` event, then reports changes. Implements `IpcReceiver`."""

    def __init__(self, clock: Clock, on_change: LinkChangeHandler) -> None:
        loop = asyncio.get_running_loop()
        self.ipc: IpcSocket
        self.facts: dict[str, Any] = {}
        """The map that the tunnel process sends about its node."""
        self.initial_links: list[LinkInfo] = []
        """The links that were up when the watch began."""
        self.is_live = False
        """Whether changes are reported. Until then they update `initial_links`."""
        self.event_count = 0
        self.synced: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[MicroError] = loop.create_future()
        self._clock = clock
        self._on_change = on_change

    def request_granted(self, facts: dict[str, Any]) -> None:
        """Keep the facts about the node."""
        self.facts = facts

    def data_received(self, data: bytes) -> None:  # noqa: ARG002 - refused
        """Refuse data.

        Raises:
            Malformed: Always: a watch has no data.
        """
        raise Malformed("tunnel IPC: unexpected DATA in a watch")

    def event_received(self, event: dict[str, Any]) -> None:
        """Handle a link, a change of a link, `synced` or a heartbeat."""
        self.event_count += 1
        if event.get("synced"):
            if not self.synced.done():
                self.synced.set_result(None)
            return
        if not event:
            return
        kind = ipc.string_field(event, "kind", 16)
        link = ipc.link_from_map(event.get("link"), self._clock.now())
        if not self.is_live:
            if len(self.initial_links) < MAX_LINKS:
                self.initial_links = [other for other in self.initial_links if other.peer != link.peer]
                self.initial_links += [link] if kind != "down" else []
            return
        self._on_change(kind, link, error_from_wire(event["error"]) if "error" in event else None)

    def pause_writing(self) -> None:
        """Do nothing: a watch writes only a few bytes."""

    def resume_writing(self) -> None:
        """Do nothing, see `pause_writing`."""

    def connection_lost(self, error: MicroError) -> None:
        """Resolve both futures."""
        if not self.synced.done():
            self.synced.set_exception(error)
            # Mark the exception as retrieved: no task may be waiting for it.
            self.synced.exception()
        if not self.lost.done():
            self.lost.set_result(error)
