"""Frames that wait to be written to a link, one queue per priority. Pure."""

from __future__ import annotations

from collections import deque

from micro_core.contract.tunnel import Priority
from micro_core.tunnel.credit import BulkWindow
from micro_core.tunnel.mux_frames import BULK, HEAD, PRIORITIES, TYPE_OFFSET


class SendQueues:
    """Whole frames in the order in which they were added, per priority. Bulk data is limited by `bulk_window`."""

    __slots__ = ("_queues", "bulk_window", "queued_bytes")

    def __init__(self, bulk_window: BulkWindow) -> None:
        self.bulk_window = bulk_window
        self.queued_bytes = [0] * len(PRIORITIES)
        """Bytes that wait, by priority."""
        self._queues: tuple[deque[bytes], ...] = tuple(deque() for _ in PRIORITIES)

    def add(self, priority: Priority, kind: int, number: int, payload: bytes | memoryview) -> None:
        """Encode a frame and append it to the queue of `priority`."""
        frame = HEAD.pack(len(payload) << 8 | kind, number) + payload
        self._queues[priority].append(frame)
        self.queued_bytes[priority] += len(frame)

    def pop(self, priority: Priority, max_bytes: int, now: float) -> bytes:
        """Remove and return whole frames of `priority`, about `max_bytes` in total.

        If `max_bytes` is positive, then at least one frame is returned, even if it is larger.
        """
        queue = self._queues[priority]
        if not queue or max_bytes <= 0:
            return b""
        if priority is Priority.BULK:
            max_bytes = min(max_bytes, self.bulk_window.available_bytes())
            if max_bytes <= 0:
                return b""
        if self.queued_bytes[priority] <= max_bytes:
            frames = list(queue)
            queue.clear()
        else:
            frames = [queue.popleft()]
            size = len(frames[0])
            while queue and size + len(queue[0]) <= max_bytes:
                size += len(queue[0])
                frames.append(queue.popleft())
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        self.queued_bytes[priority] -= len(data)
        if priority is Priority.BULK:
            # Frame by frame, as the peer acknowledges them: a larger unit would be measured by an acknowledgement of
            # its first bytes only.
            for frame in frames:
                if frame[TYPE_OFFSET] == BULK:
                    self.bulk_window.sent(len(frame) - HEAD.size, now)
        return data
