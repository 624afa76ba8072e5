"""The conformance kit of the broker role, without and with JetStream."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import nats
import pytest
from micro_nats_broker import micro_broker
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.subjects import Subjects

from micro_core.contract import Broker, DriverContext
from micro_core.testing import BrokerConformance, DriverUnderTest, Faults


class NatsFaults(Faults):
    def __init__(self, server: Any) -> None:
        self._server = server

    async def kill(self) -> None:
        self._server.kill()

    async def restart(self) -> None:
        self._server.start()

    async def wipe(self) -> None:
        self._server.wipe()
        self._server.start()

    async def pause(self) -> None:
        self._server.pause()

    async def resume(self) -> None:
        self._server.resume()

    async def garbage(self, context: DriverContext) -> None:
        subjects = Subjects(network=context.network, site=context.site, root="micro")
        client = await nats.connect(self._server.url)
        for topic in ("orders.created", "orders"):
            subject = subjects.of(topic)
            await client.publish(subject, b"no id")
            await client.publish(subject, b"", headers={"Micro-Id": "%zz"})
            await client.publish(subject, b"x", headers={"Micro-Id": "1", "a": "%ff"})
            await client.publish(subject, b"x", headers={"Micro-Id": "i" * 100})
            await client.publish(subject, b"", headers={"Status": "503"})
        # nats-py sends the PING of a flush before the commands that it has queued, so only the second one follows them.
        await client.flush()
        await client.flush()
        await client.close()


class TestNatsBroker(BrokerConformance):
    @pytest.fixture
    def driver_under_test(self, start_server: Callable[..., Any]) -> DriverUnderTest[Broker]:
        server = start_server(config="max_payload: 8MB\n")
        return DriverUnderTest(
            driver=micro_broker(),
            options=NatsOptions(url=(server.url,), retry_s=0.2, answer_timeout_s=2.0, keepalive_s=1.0),
            faults=NatsFaults(server),
        )


class TestNatsBrokerWithJetStream(BrokerConformance):
    @pytest.fixture
    def driver_under_test(self, start_server: Callable[..., Any]) -> DriverUnderTest[Broker]:
        server = start_server(config="max_payload: 8MB\n", jetstream=True)
        options = NatsOptions(
            url=(server.url,),
            durable=True,
            retry_s=0.2,
            answer_timeout_s=2.0,
            keepalive_s=1.0,
            max_bytes=32 * 1024 * 1024,
            redelivery_delay_s=0.05,
            publish_timeout_s=2.0,
        )
        return DriverUnderTest(
            driver=micro_broker(),
            options=options,
            faults=NatsFaults(server),
            capabilities=micro_broker().capabilities | {"durable"},
        )
