"""The conformance kit of the resolver role, with an HTTP server on 127.0.0.1 that can stop or send garbage."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence

import pytest
from micro_http_resolver import micro_resolver
from micro_http_resolver.options import HttpOptions

from micro_core.contract import Candidate, DriverContext, Resolver
from micro_core.testing import DriverUnderTest, Faults, Harness, ResolverConformance, free_port


class WebServer(Faults):
    """An HTTP server with one document per path."""

    def __init__(self) -> None:
        self.port = free_port()
        self.documents: dict[str, bytes] = {}
        self._sends_garbage = False
        self._server: asyncio.Server | None = None

    async def restart(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def kill(self) -> None:
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def garbage(self, context: DriverContext) -> None:
        del context
        self._sends_garbage = True

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path = (await reader.readuntil(b"\r\n\r\n")).split()[1].decode()
        body = b'{"nodes": [{"address": 7}, null, "\xff' if self._sends_garbage else self.documents.get(path)
        head = b"HTTP/1.1 404 Not Found" if body is None else b"HTTP/1.1 200 OK"
        body = body or b""
        writer.write(head + b"\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body)
        await writer.drain()
        writer.close()


class TestHttpResolver(ResolverConformance):
    @pytest.fixture
    async def driver_under_test(self) -> AsyncIterator[DriverUnderTest[Resolver]]:
        self.server = WebServer()
        await self.server.restart()
        options = HttpOptions(url=f"http://127.0.0.1:{self.server.port}/{{network}}", timeout_s=2.0)
        yield DriverUnderTest(driver=micro_resolver(), options=options, faults=self.server)
        await self.server.kill()

    async def publish(self, harness: Harness[Resolver], candidates: Sequence[Candidate]) -> None:
        nodes = [
            {"address": candidate.address, "priority": candidate.priority, "weight": candidate.weight}
            for candidate in candidates
        ]
        self.server.documents[f"/{harness.network}"] = json.dumps({"nodes": nodes}).encode()
