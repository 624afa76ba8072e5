"""What can be set about the metrics."""

from __future__ import annotations

from dataclasses import dataclass

from micro_core.contract import BadRequest, OptionError, option
from micro_core.contract.names import split_host_port

DEFAULT_LISTEN = "127.0.0.1:9464"


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusOptions:
    """Options of `hooks:prometheus`."""

    listen: str = option(DEFAULT_LISTEN, "host:port where a node shows its metrics; empty: nowhere.")
    service_listen: str = option("", "host:port where the process of a service shows its own; empty: nowhere.")
    max_series: int = option(500, "Pairs of service and endpoint that are told apart; the others count as one.")

    def __post_init__(self) -> None:
        if self.max_series < 1:
            raise OptionError(f"max_series = {self.max_series} is not 1 or more")
        for name in ("listen", "service_listen"):
            value = getattr(self, name)
            try:
                if value:
                    split_host_port(value)
            except BadRequest as error:
                raise OptionError(f"{name}: {error.detail}", hint=error.hint) from error
