"""Processes on virtual time: the callbacks of a process wait while its processor is busy, or while it is stopped.

A callback belongs to the process whose context it was scheduled in, so that the timers and tasks of a node belong to it
without any change to the node. Callbacks outside all processes (the scenario, the network, services and clients) never
wait.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuModel:
    """The processor time that a node needs for its work: for each chunk of data that is received or sent on a link or socket.

    The defaults were measured once, on one core with CPython 3.11. A node that forwards one call handles four chunks. It
    needs about 790 µs if it handles one call at a time over QUIC, and a quarter of that per chunk; most of it is for waking
    up and for packets with a single chunk. With many calls at once, chunks share packets, and what remains is the code above
    the driver: 42 µs per chunk (`benchmarks/lab_cost.py`). Routing messages need more, about in proportion to their size:
    355 µs for an average message at both ends together. `per_byte_s` is that of routing messages, so large calls are more
    expensive here than in reality.
    """

    per_wakeup_s: float = 150e-6
    """Additional time for a chunk if the node has nothing else to do."""

    per_message_s: float = 45e-6
    """Time for each chunk."""

    per_byte_s: float = 0.1e-6
    """Time for each byte of it."""

    per_link_s: float = 8e-3
    """Time for each handshake, at either end of a new link."""

    speed: float = 1.0
    """Share of a core that each node has. Twelve nodes on two cores have 1/6 each."""


ALLOWED_LAG_S = 0.001
"""A process takes on further work while it lags behind by less than this. Fewer timers are needed with it."""

PROCESS: contextvars.ContextVar[SimulatedProcess | None] = contextvars.ContextVar("micro_lab_process", default=None)
"""The process that the running callback belongs to."""


class SimulatedProcess:
    """One process: the end of the work that it has taken on, and the callbacks that wait for it.

    Without a `model`, work takes no time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, model: CpuModel | None) -> None:
        self.work_s = 0.0
        """Processor time used so far."""
        self.chunks = 0
        """Chunks of data received and sent so far."""
        self.bytes = 0
        """Bytes in them."""
        self.max_lag_s = 0.0
        """The longest time by which it lagged behind."""
        self.context = contextvars.copy_context()
        """The context in which the callbacks of this process are scheduled."""
        self.context.run(PROCESS.set, self)
        self._loop = loop
        self._model = model
        self._busy_until = 0.0
        self._stopped_until = 0.0
        self._waiting: deque[asyncio.Handle] = deque()
        self._timer: asyncio.TimerHandle | None = None

    # ------------------------------------------------------------------------ work

    def work(self, byte_count: int) -> float:
        """Account for one chunk of data that is received or sent. Return the time at which this work is done."""
        self.chunks += 1
        self.bytes += byte_count
        model = self._model
        if model is None:
            return self._busy_until
        wakeup_s = model.per_wakeup_s if self._busy_until <= self._loop.time() else 0.0
        return self._add(wakeup_s + model.per_message_s + byte_count * model.per_byte_s)

    def handshake(self) -> None:
        """Account for the handshake of a link."""
        if self._model is not None:
            self._add(self._model.per_link_s)

    def _add(self, seconds: float) -> float:
        assert self._model is not None
        now = self._loop.time()
        seconds /= self._model.speed
        self.work_s += seconds
        self._busy_until = max(now, self._busy_until) + seconds
        self.max_lag_s = max(self.max_lag_s, self._busy_until - now)
        return self._busy_until

    @property
    def lag_s(self) -> float:
        """The time by which the process lags behind its work."""
        return max(0.0, self._busy_until - self._loop.time())

    # --------------------------------------------------------------------- waiting

    @property
    def is_held(self) -> bool:
        """Whether callbacks of this process must wait."""
        now = self._loop.time()
        return bool(self._waiting) or self._busy_until - now > ALLOWED_LAG_S or self._stopped_until > now

    @property
    def stopped_for_s(self) -> float:
        """The time for which the process is still stopped, as by a SIGSTOP."""
        return max(0.0, self._stopped_until - self._loop.time())

    def hold(self, handle: asyncio.Handle) -> None:
        """Run a callback after all that wait already, once the process has time."""
        self._waiting.append(handle)
        if self._timer is None:
            self._set_timer()

    def stop(self, seconds: float) -> None:
        """Stop the process for `seconds`. All callbacks that were due meanwhile run afterwards, one after the other."""
        self._stopped_until = max(self._stopped_until, self._loop.time() + seconds)

    def resume(self) -> None:
        """Continue a stopped process now."""
        self._stopped_until = 0.0
        self._set_timer()

    def end(self) -> None:
        """End the process: the cleanup after a crash takes no time."""
        self._model = None
        self._busy_until = 0.0
        self.resume()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        when = max(self._loop.time(), self._busy_until, self._stopped_until)
        self._timer = self._loop.call_at(when, self._run_waiting, context=contextvars.Context())

    def _run_waiting(self) -> None:
        self._timer = None
        while self._waiting:
            now = self._loop.time()
            if self._busy_until - now > ALLOWED_LAG_S or self._stopped_until > now:
                self._set_timer()
                return
            handle = self._waiting.popleft()
            if not handle.cancelled():
                handle._run()
