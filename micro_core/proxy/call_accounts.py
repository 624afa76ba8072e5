"""Which calls are in progress on which route, and what their answers and refusals show about the route."""

from __future__ import annotations

from collections.abc import Callable

from micro_core.contract.errors import Draining, MicroError, Overloaded, RouteNotFound, ServiceNotFound, Unreachable
from micro_core.proxy.forwarded_call import ForwardedCall
from micro_core.proxy.route_choice import RouteChooser
from micro_core.proxy.route_usage import RouteUsage
from micro_core.wire.header import CallMode

_FAULTS_OF_ROUTE = (Unreachable, RouteNotFound, ServiceNotFound, Draining)
"""Errors after which other routes are preferred for a time. Others concern only the call, e.g. its path or its deadline."""


class CallAccounts:
    """Records the start, the answer and the end of each call on its route. `now` returns the clock time."""

    def __init__(self, chooser: RouteChooser, now: Callable[[], float]) -> None:
        self._chooser = chooser
        self._now = now

    def started(self, call: ForwardedCall, usage: RouteUsage, now: float) -> None:
        """Record that a call is sent along a route."""
        call.tried.append(usage.route.key)
        call.usage = usage
        usage.outstanding += 1
        if call.header.mode == CallMode.UNARY:
            usage.destination.call_started(now)

    def answered(self, call: ForwardedCall) -> None:
        """Measure the time until the first frame of the answer, which shows the load at the end of the route."""
        usage, header = call.usage, call.header
        if usage is None:
            return
        if usage.refusals:
            self._chooser.answered(usage)
        if header.mode == CallMode.UNARY:
            now = self._now()
            usage.destination.answered(header.endpoint, now - call.sent_at, now)

    def ended(self, call: ForwardedCall) -> None:
        """Release the route of a call that has ended, with or without an answer."""
        # As in `_release`, without a further function: this runs for each call at every hop.
        usage = call.usage
        if usage is None:
            return
        call.usage = None
        usage.outstanding -= 1
        if call.header.mode == CallMode.UNARY:
            destination = usage.destination
            if not call.is_answered and call.callee_stream:
                # A call that was given up shows load, too, if it has already taken longer than usual.
                now = self._now()
                if destination.is_slow(now - call.sent_at):
                    destination.answered(call.header.endpoint, now - call.sent_at, now)
            destination.outstanding -= 1

    def refused(self, call: ForwardedCall, error: MicroError) -> None:
        """Release the route of a call that failed with `error` before it was answered, and note why."""
        usage = call.usage
        self._release(call)
        if usage is None:
            return
        if isinstance(error, Overloaded):
            usage.destination.refused(self._now())
        elif isinstance(error, _FAULTS_OF_ROUTE):
            self._chooser.refused(usage, self._now())

    def _release(self, call: ForwardedCall) -> None:
        usage = call.usage
        if usage is not None:
            usage.outstanding -= 1
            if call.header.mode == CallMode.UNARY:
                usage.destination.outstanding -= 1
            call.usage = None
