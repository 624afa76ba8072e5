"""A subscriber without a queue group: every instance receives every message."""

from dataclasses import dataclass

from micro_core import Service


@dataclass
class Order:
    number: int
    item: str


service = Service("go.micro.srv.audit")


@service.subscriber("orders.placed")
async def on_order(order: Order) -> None:
    print(f"noted order {order.number}, a {order.item}", flush=True)


if __name__ == "__main__":
    service.run()
