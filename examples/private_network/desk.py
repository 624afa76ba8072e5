"""A service whose name is set by the environment, e.g. SERVICE=acme.catalogue."""

import os
from dataclasses import dataclass

from micro_core import Service


@dataclass
class AskReply:
    answer: str


service = Service(os.environ["SERVICE"])


@service.handler
class Desk:
    async def ask(self) -> AskReply:
        return AskReply(answer=f"this is {service.name}")


if __name__ == "__main__":
    service.run()
