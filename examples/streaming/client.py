"""Use all three kinds of streams of a service on another site."""

import asyncio
from dataclasses import dataclass

from micro_core import CallMode, Client

THERMOMETER = "go.micro.srv.thermometer"


# The types that the client sends and receives; it needs no code of the service.
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


async def main() -> None:
    async with Client() as client:
        await watch(client)
        await summarize(client)
        await guard(client)


async def watch(client: Client) -> None:
    """Receive a server stream."""
    async with client.stream(
        THERMOMETER,
        "Thermometer.Watch",
        {"count": 3},
        mode=CallMode.SERVER_STREAM,
        response_type=Reading,
    ) as stream:
        async for reading in stream:
            print(f"watch: {reading.celsius} degrees")


async def summarize(client: Client) -> None:
    """Send a client stream."""
    async with client.stream(
        THERMOMETER, "Thermometer.Summarize", mode=CallMode.CLIENT_STREAM, response_type=Summary
    ) as stream:
        for celsius in (18.0, 20.0, 25.0):
            await stream.send(Reading(celsius=celsius))
        await stream.end()
        summary: Summary = await stream.receive()
        print(f"summarize: {summary.count} readings, mean {summary.mean}")


async def guard(client: Client) -> None:
    """Use a bidirectional stream: receive each alarm before sending the next reading."""
    async with client.stream(THERMOMETER, "Thermometer.Guard", response_type=Alarm) as stream:
        for celsius in (3.0, -1.0, 2.0, -4.5):
            await stream.send(Reading(celsius=celsius))
            if celsius < 0:
                alarm: Alarm = await stream.receive()
                print(f"guard: alarm {alarm.number} at {alarm.celsius} degrees")
        await stream.end()


if __name__ == "__main__":
    asyncio.run(main())
