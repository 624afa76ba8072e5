"""A greeter: one service with one endpoint. Run it, and every joined network can call it."""

from dataclasses import dataclass

from micro_core import Service


@dataclass
class HelloRequest:
    name: str


@dataclass
class HelloReply:
    msg: str


service = Service("go.micro.srv.greeter")


@service.handler
class Say:
    async def hello(self, request: HelloRequest) -> HelloReply:
        """Greet a person by name."""
        return HelloReply(msg="Hello " + request.name)


if __name__ == "__main__":
    service.run()
