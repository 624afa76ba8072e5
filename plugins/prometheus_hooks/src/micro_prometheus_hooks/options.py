"""Options of the Prometheus plugin."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import BadRequest, OptionError, option
from micro_core.contract.names import split_host_port

DEFAULT_LISTEN = "127.0.0.1:9464"
"""Default address of the metrics of a node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusOptions:
    """Options of `hooks:prometheus`. Raises OptionError for an invalid address or limit."""

    listen: str = option(DEFAULT_LISTEN, "Address (host:port) at which a node serves its metrics; empty: disabled.")
    service_listen: str = option(
        "", "Address (host:port) at which the process of a service serves its metrics; empty: disabled."
    )
    max_series: int = option(
        500, "Maximum number of (service, endpoint) pairs with their own labels; all others are counted together."
    )

    def __post_init__(self) -> None:
        if self.max_series < 1:
            raise OptionError(f"max_series = {self.max_series} is out of range: it must be at least 1")
        for name in ("listen", "service_listen"):
            value = getattr(self, name)
            try:
                if value:
                    split_host_port(value)
            except BadRequest as error:
                raise OptionError(f"{name}: {error.detail}", hint=error.hint) from error
