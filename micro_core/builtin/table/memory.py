"""The driver `table:memory`: a route table in memory that is lost with the process."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, NoOptions, hookimpl
from micro_core.contract.route_index import RouteIndex
from micro_core.contract.table import Table


class MemoryTable(RouteIndex):
    """Implements `micro_core.contract.table.Table`."""

    async def start(self) -> None:
        """Do nothing: there is nothing to connect to."""

    async def close(self) -> None:
        """Remove all watchers. The routes stay readable."""
        self.forget_watchers()


def create(_options: NoOptions, context: DriverContext) -> MemoryTable:
    """Return the table."""
    return MemoryTable(logger=context.logger, counters=context.counters)


@hookimpl
def micro_table() -> Driver[Table]:
    """Return the description of the driver."""
    return Driver(name="memory", summary="Routes in the memory of this process.", options=NoOptions, create=create)
