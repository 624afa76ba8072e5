"""A member of a queue group: one of the instances on its site receives each message."""

from dataclasses import dataclass

from micro_core import Service


@dataclass
class Order:
    number: int
    item: str


service = Service("go.micro.srv.billing")


@service.subscriber("orders.placed", queue="billing")
async def on_order(order: Order) -> None:
    print(f"billed order {order.number}", flush=True)


if __name__ == "__main__":
    service.run()
