"""A subscriber in the other cloud that prints every change of the stock."""

from dataclasses import dataclass

from micro_core import Service


@dataclass
class StockLevel:
    item: str
    left: int


service = Service("go.micro.srv.display")


@service.subscriber("stock.changed")
async def on_change(change: StockLevel) -> None:
    print(f"{change.item}: {change.left} left", flush=True)


if __name__ == "__main__":
    service.run()
