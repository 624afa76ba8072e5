"""`micro network ... --address` while the registry of the site does not answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from micro_core.builtin.registry.local import LocalRegistry
from micro_core.builtin.transport.tcp import TcpOptions, TcpTransport
from micro_core.cli.network import call_node
from micro_core.config import load_settings
from micro_core.contract.errors import Unreachable
from micro_core.contract.names import NETWORK_SERVICE
from micro_core.drivers.runtime import process_context
from micro_core.rpc.connection import Connection
from micro_core.rpc.server import Server


async def test_node_at_an_address_is_called_while_the_registry_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MICRO_STATE_DIR", str(tmp_path))

    async def start(_: Any) -> None:
        raise Unreachable("the registry does not answer")

    monkeypatch.setattr(LocalRegistry, "start", start)
    transport = TcpTransport(TcpOptions(), process_context(load_settings()))
    await transport.start()
    server = Server(name=NETWORK_SERVICE)

    async def connections() -> dict[str, Any]:
        return {"connections": []}

    server.add("Network.Connections", connections, idempotent=True)
    opened: list[Connection] = []
    listener = await transport.listen(
        "tcp://127.0.0.1:0",
        lambda socket: opened.append(Connection(socket, dialed=False, handler=server, counters=server.counters)),
    )
    try:
        assert await call_node("Network.Connections", {}, None, listener.address) == {"connections": []}
        with pytest.raises(Unreachable, match="registry does not answer"):
            await call_node("Network.Connections", {}, None, None)
    finally:
        await listener.close()
        await transport.close()
