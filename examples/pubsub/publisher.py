"""Publish orders on this site. Subscribers may be on any site."""

import asyncio
from dataclasses import dataclass

from micro_core import Client


@dataclass
class Order:
    number: int
    item: str


async def main() -> None:
    async with Client() as client:
        for number, item in enumerate(("lamp", "chair", "table", "clock"), start=1):
            await client.publish("orders.placed", Order(number=number, item=item))
            print(f"placed order {number}")


if __name__ == "__main__":
    asyncio.run(main())
