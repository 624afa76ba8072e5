"""A service in one cloud that tracks a stock and publishes every change."""

from dataclasses import dataclass

from micro_core import Conflict, Service


@dataclass
class TakeRequest:
    item: str
    count: int


@dataclass
class StockLevel:
    item: str
    left: int


service = Service("go.micro.srv.stock")

stock = {"lamp": 5, "chair": 2}


@service.handler
class Stock:
    async def take(self, request: TakeRequest) -> StockLevel:
        """Take items from the stock. Raises Conflict if there are not enough."""
        left = stock.get(request.item, 0) - request.count
        if left < 0:
            raise Conflict(f"only {stock.get(request.item, 0)} of {request.item!r:.40} left")
        stock[request.item] = left
        answer = StockLevel(item=request.item, left=left)
        await service.client.publish("stock.changed", answer)
        return answer


if __name__ == "__main__":
    service.run()
