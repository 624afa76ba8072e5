"""How long calls take, by service, endpoint and code: an interceptor and its histogram."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Histogram

from micro_core.contract import CallInfo, Clock, MicroError, Next

OTHER = "(other)"
"""The label of services and endpoints beyond the bound: a caller that makes names up must not fill the memory."""

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class CallMetrics:
    """The calls of one process, on both sides. One `measure` stands round every call."""

    def __init__(self, registry: CollectorRegistry, clock: Clock, max_series: int) -> None:
        self._clock = clock
        self._max_series = max_series
        self._known: set[tuple[str, str]] = set()
        self._seconds = Histogram(
            "micro_call_seconds",
            "Duration of calls; of a stream, of its opening on the client and of its whole on the server.",
            ["side", "service", "endpoint", "code"],
            buckets=BUCKETS_S,
            registry=registry,
        )

    async def measure(self, call: CallInfo, proceed: Next) -> Any:
        """The interceptor."""
        began = self._clock.now()
        code = 200
        try:
            return await proceed(call)
        except MicroError as error:
            code = error.code
            raise
        except Exception:
            # What a handler raises otherwise reaches the caller as InternalError.
            code = 500
            raise
        except BaseException:
            # Cancelled: the caller went away.
            code = 499
            raise
        finally:
            service, endpoint = self._labels(call)
            took_s = self._clock.now() - began
            self._seconds.labels(call.side, service, endpoint, str(code)).observe(took_s)

    def _labels(self, call: CallInfo) -> tuple[str, str]:
        pair = (call.service, call.endpoint)
        if pair not in self._known:
            if len(self._known) >= self._max_series:
                return OTHER, OTHER
            self._known.add(pair)
        return pair
