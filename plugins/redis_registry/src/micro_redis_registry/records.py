"""Read the records of a namespace page by page, so that neither the server nor this process is blocked for long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from micro_core.contract import Counters, Instance, Malformed
from micro_redis_registry.directory import MAX_RECORDS, Directory
from micro_redis_registry.encoding import MAX_SEQUENCE, decode_record, read_number
from micro_redis_registry.namespace import Namespace
from micro_redis_registry.scripts import LIST
from micro_redis_registry.server import Server

PAGE_RECORDS = 100
"""Approximate number of records per page, which take the server a third of a millisecond."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page of records: epoch and sequence number of the server at that time, and (id, sequence, record as JSON)."""

    epoch: int
    sequence: int
    records: list[tuple[str, int, bytes]]


class RecordReader:
    """Reads pages and whole lists. Invalid records are counted and skipped."""

    def __init__(self, server: Server, namespace: Namespace, directory: Directory, counters: Counters) -> None:
        self._server = server
        self._namespace = namespace
        self._directory = directory
        self._counters = counters

    async def pages(self, service: str | None) -> AsyncGenerator[Page, None]:
        """Yield the records of a service (None for all) in pages. Raises the errors of `Server.run`.

        Every record that exists during the whole iteration is on at least one page.
        """
        cursor = b"0"
        while True:
            answer = await self._read_page(service or "", cursor)
            if answer[4]:
                self._counters.add("redis_garbage", answer[4])
            yield Page(epoch=answer[1], sequence=answer[2], records=self._records(answer[5:]))
            cursor = answer[3]
            if cursor == b"0":
                return

    async def instances(self, service: str | None) -> list[Instance]:
        """Return the instances of one service (None for all). Raises the errors of `Server.run`."""
        found: dict[str, tuple[int, Instance]] = {}
        async with aclosing(self.pages(service)) as pages:
            async for page in pages:
                for instance_id, sequence, encoded in page.records:
                    known = found.get(instance_id)
                    # A record is on two pages if it moved to another service in the meantime; the later one counts.
                    if known is not None and known[0] >= sequence:
                        continue
                    instance = self._directory.decoded(instance_id, encoded) or self._decoded(instance_id, encoded)
                    if instance is not None and (service is None or instance.service == service):
                        found[instance_id] = (sequence, instance)
                if len(found) > MAX_RECORDS:
                    self._counters.add("redis_records_over_limit", len(found) - MAX_RECORDS)
                    break
                await asyncio.sleep(0)
        return [instance for _, instance in found.values()]

    async def _read_page(self, service: str, cursor: bytes) -> list[Any]:
        arguments = (self._namespace.root, self._namespace.feed, service, cursor, str(PAGE_RECORDS))
        return await self._server.run(LIST, (self._namespace.index,), lambda: arguments)

    def _records(self, listed: list[object]) -> list[tuple[str, int, bytes]]:
        records = []
        for index in range(0, len(listed) - 2, 3):
            instance_id, sequence, encoded = listed[index : index + 3]
            try:
                assert isinstance(instance_id, bytes)
                assert isinstance(encoded, bytes)
                records.append((instance_id.decode(), read_number(sequence, MAX_SEQUENCE), encoded))
            except (Malformed, UnicodeDecodeError):
                self._counters.add("redis_garbage")
        return records

    def _decoded(self, instance_id: str, encoded: bytes) -> Instance | None:
        try:
            return decode_record(encoded, instance_id)
        except Malformed:
            self._counters.add("redis_garbage")
            return None
