"""The table role in this process's memory, and nowhere else."""

from __future__ import annotations

from micro_core.contract import Driver, DriverContext, NoOptions, hookimpl
from micro_core.contract.route_index import RouteIndex
from micro_core.contract.table import Table


class MemoryTable(RouteIndex):
    """Implements `micro_core.contract.table.Table`."""

    async def start(self) -> None:
        """Nothing to connect to."""

    async def close(self) -> None:
        """Forget watchers; the routes stay readable."""
        self.forget_watchers()


def create(_options: NoOptions, context: DriverContext) -> MemoryTable:
    """Build the table."""
    return MemoryTable(logger=context.logger, counters=context.counters)


@hookimpl
def micro_table() -> Driver[Table]:
    return Driver(name="memory", summary="Routes in this process's memory.", options=NoOptions, create=create)
