"""Runs in the other cloud, and hears what changed."""

from dataclasses import dataclass

from micro_core import Service


@dataclass
class Left:
    item: str
    left: int


service = Service("go.micro.srv.display")


@service.subscriber("stock.changed")
async def on_change(change: Left) -> None:
    print(f"{change.item}: {change.left} left", flush=True)


if __name__ == "__main__":
    service.run()
