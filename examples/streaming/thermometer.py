"""A service with one endpoint of each streaming kind. The signature determines the kind."""

from collections.abc import AsyncIterator
from dataclasses import dataclass

from micro_core import Service


@dataclass
class WatchRequest:
    count: int


@dataclass
class Reading:
    celsius: float


@dataclass
class Summary:
    count: int
    mean: float


@dataclass
class Alarm:
    number: int
    celsius: float


service = Service("go.micro.srv.thermometer")

FREEZING = 0.0


@service.handler
class Thermometer:
    async def watch(self, request: WatchRequest) -> AsyncIterator[Reading]:
        """Server stream: answer one request with many readings."""
        for number in range(request.count):
            yield Reading(celsius=20.0 + number)

    async def summarize(self, readings: AsyncIterator[Reading]) -> Summary:
        """Client stream: receive many readings and return one summary."""
        seen = [reading.celsius async for reading in readings]
        return Summary(count=len(seen), mean=sum(seen) / len(seen) if seen else 0.0)

    async def guard(self, readings: AsyncIterator[Reading]) -> AsyncIterator[Alarm]:
        """Bidirectional stream: send an alarm for each reading below freezing."""
        number = 0
        async for reading in readings:
            if reading.celsius < FREEZING:
                number += 1
                yield Alarm(number=number, celsius=reading.celsius)


if __name__ == "__main__":
    service.run()
