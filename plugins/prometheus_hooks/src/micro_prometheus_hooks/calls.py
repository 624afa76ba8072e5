"""An interceptor that measures the duration of calls by service, endpoint and code."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Histogram

from micro_core.contract import CallInfo, Clock, MicroError, Next

OTHER = "(other)"
"""Label of services and endpoints beyond the limit, so that invented names cannot exhaust the memory."""

BUCKETS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the histogram buckets in seconds."""


class CallMetrics:
    """The call metrics of one process, for clients and services.

    Args:
        registry: The Prometheus registry that receives the histogram.
        clock: Source of the time.
        max_series: Maximum number of (service, endpoint) pairs with their own labels.
    """

    def __init__(self, registry: CollectorRegistry, clock: Clock, max_series: int) -> None:
        self._clock = clock
        self._max_series = max_series
        self._labelled: set[tuple[str, str]] = set()
        self._seconds = Histogram(
            "micro_call_seconds",
            "Duration of calls. For streams: until opened (client), the whole stream (server).",
            ["side", "service", "endpoint", "code"],
            buckets=BUCKETS_S,
            registry=registry,
        )

    async def measure(self, call: CallInfo, proceed: Next) -> Any:
        """Call `proceed` and record the duration and the result code of the call."""
        started_at = self._clock.now()
        code = 200
        try:
            return await proceed(call)
        except MicroError as error:
            code = error.code
            raise
        except Exception:
            # The caller receives any other exception of a handler as InternalError.
            code = 500
            raise
        except BaseException:
            # The call was cancelled because the caller disconnected.
            code = 499
            raise
        finally:
            service, endpoint = self._labels(call)
            duration_s = self._clock.now() - started_at
            self._seconds.labels(call.side, service, endpoint, str(code)).observe(duration_s)

    def _labels(self, call: CallInfo) -> tuple[str, str]:
        pair = (call.service, call.endpoint)
        if pair not in self._labelled:
            if len(self._labelled) >= self._max_series:
                return OTHER, OTHER
            self._labelled.add(pair)
        return pair
