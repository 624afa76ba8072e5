"""Records of instances as plain maps (for JSON and msgpack), checked on the way in. Pure.

A registry keeps and sends `instance_to_dict(instance)`; whatever comes back from a peer or a file goes through
`instance_from_dict`. Fields at their default are left out; fields that a later version adds are ignored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from micro_core.contract.errors import BadRequest, Malformed, TooLarge
from micro_core.contract.names import MAX_NAME_CHARS, check_endpoint_name, check_service_name
from micro_core.contract.registry import Endpoint, EndpointKind, Instance

MAX_RECORD_BYTES = 64 * 1024
"""All texts and values of one record together: `check_instance` raises TooLarge above it. Every watcher of a network holds
every record. A driver whose back end takes less raises TooLarge itself, naming its own bound."""

MAX_ENDPOINTS = 512
"""Endpoints of one instance, its subscriptions (at most 256) included."""

MAX_METADATA = 64
"""Metadata entries of one instance."""

MAX_METADATA_KEY_CHARS = 128
MAX_METADATA_VALUE_CHARS = 4_096

MAX_ADDRESS_CHARS = 1_024
"""A unix socket's path is at most 108 characters, a host name 253: this leaves room for both in URL form."""

MAX_VERSION_CHARS = 128
MAX_DESCRIPTION_CHARS = 2_000

MAX_SCHEMA_DEPTH = 32
"""Levels of a JSON Schema: deeper ones are refused before they exhaust the stack."""

_VALUE_BYTES = 8
"""What a number, a flag or a container counts towards MAX_RECORD_BYTES."""


def instance_to_dict(instance: Instance) -> dict[str, object]:
    """Return `instance` as a plain map of texts, numbers, lists and maps.

    Does not check: `check_instance` does, and a driver's `register` calls it first.
    """
    record: dict[str, object] = {"service": instance.service, "id": instance.id, "address": instance.address}
    if instance.version != "latest":
        record["version"] = instance.version
    if instance.metadata:
        record["metadata"] = dict(instance.metadata)
    if instance.endpoints:
        record["endpoints"] = [_endpoint_to_dict(endpoint) for endpoint in instance.endpoints]
    return record


def instance_from_dict(value: object) -> Instance:
    """Build the instance of a record that came from outside, as a map that JSON or msgpack gave; the result shares nothing
    mutable with `value`.

    Raises Malformed, naming the field, for whatever does not fit: missing fields, wrong types, bounds.
    """
    try:
        return _Reader().read_instance(value)
    except TooLarge as error:
        raise Malformed(error.detail, hint=error.hint) from error


def check_instance(instance: Instance) -> Instance:
    """Return a copy of `instance` that later changes of its maps do not reach: `register` begins with it.

    Raises BadRequest naming the field that other nodes would refuse, TooLarge when the whole record is over
    MAX_RECORD_BYTES. A driver only checks what its own back end bounds more tightly.
    """
    return _Reader().read_instance(instance_to_dict(instance))


def _endpoint_to_dict(endpoint: Endpoint) -> dict[str, object]:
    record: dict[str, object] = {"name": endpoint.name}
    if endpoint.kind is not EndpointKind.UNARY:
        record["kind"] = endpoint.kind.value
    if endpoint.request:
        record["request"] = endpoint.request
    if endpoint.response:
        record["response"] = endpoint.response
    if endpoint.idempotent:
        record["idempotent"] = True
    if endpoint.queue:
        record["queue"] = endpoint.queue
    if endpoint.description:
        record["description"] = endpoint.description
    return record


class _Reader:
    """Reads one record; `_budget` is what is left of MAX_RECORD_BYTES."""

    __slots__ = ("_budget",)

    def __init__(self) -> None:
        self._budget = MAX_RECORD_BYTES

    def read_instance(self, value: object) -> Instance:
        record = self._map(value, "record", 64)
        return Instance(
            service=self._name(record.get("service"), "service", check_service_name),
            id=self._label(record.get("id"), "id", MAX_NAME_CHARS),
            address=self._label(record.get("address"), "address", MAX_ADDRESS_CHARS),
            version=self._label(record.get("version", "latest"), "version", MAX_VERSION_CHARS),
            metadata=self._metadata(record.get("metadata", {})),
            endpoints=self._endpoints(record.get("endpoints", ())),
        )

    def _endpoints(self, value: object) -> tuple[Endpoint, ...]:
        if not isinstance(value, (list, tuple)) or len(value) > MAX_ENDPOINTS:
            raise Malformed(f"endpoints: not a list of at most {MAX_ENDPOINTS}")
        return tuple([self._endpoint(item) for item in value])

    def _endpoint(self, value: object) -> Endpoint:
        record = self._map(value, "endpoint", 64)
        kind = record.get("kind", EndpointKind.UNARY.value)
        if not isinstance(kind, str) or kind not in _KINDS:
            raise Malformed(f"endpoint: kind {kind!r:.40} is none of {', '.join(_KINDS)}")
        idempotent = record.get("idempotent", False)
        if not isinstance(idempotent, bool):
            raise Malformed("endpoint: idempotent is not a flag")
        return Endpoint(
            name=self._name(record.get("name"), "endpoint", check_endpoint_name),
            kind=_KINDS[kind],
            request=self._schema(record.get("request", {})),
            response=self._schema(record.get("response", {})),
            idempotent=idempotent,
            queue=self._text(record.get("queue", ""), "queue", MAX_NAME_CHARS),
            description=self._text(record.get("description", ""), "description", MAX_DESCRIPTION_CHARS),
        )

    def _metadata(self, value: object) -> dict[str, str]:
        return {
            key: self._text(entry, f"metadata {key!r:.60}", MAX_METADATA_VALUE_CHARS)
            for key, entry in self._map(value, "metadata", MAX_METADATA, MAX_METADATA_KEY_CHARS).items()
        }

    def _schema(self, value: object) -> dict[str, object]:
        if not isinstance(value, Mapping):
            raise Malformed("schema: not a map")
        copied = self._value(value, MAX_SCHEMA_DEPTH)
        assert isinstance(copied, dict)
        return copied

    def _value(self, value: object, depth: int) -> object:
        self._spend(_VALUE_BYTES)
        if isinstance(value, str):
            return self._text(value, "schema", MAX_RECORD_BYTES)
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, int) and -(2**63) <= value < 2**63:
            return value
        if isinstance(value, float) and math.isfinite(value):
            return value
        if depth == 0:
            raise Malformed(f"schema: nests deeper than {MAX_SCHEMA_DEPTH} levels")
        if isinstance(value, (list, tuple)):
            return [self._value(item, depth - 1) for item in value]
        if isinstance(value, Mapping):
            entries = self._map(value, "schema", MAX_RECORD_BYTES, MAX_RECORD_BYTES)
            return {key: self._value(item, depth - 1) for key, item in entries.items()}
        raise Malformed(f"schema: holds a {type(value).__name__}, which has no place in JSON")

    def _map(
        self, value: object, what: str, most: int, most_key_chars: int = MAX_METADATA_KEY_CHARS
    ) -> Mapping[str, object]:
        if not isinstance(value, Mapping) or len(value) > most:
            raise Malformed(f"{what}: not a map of at most {most} entries")
        for key in value:
            self._text(key, f"{what}: a key", most_key_chars)
        return value

    def _name(self, value: object, what: str, check: Callable[[str], str]) -> str:
        name = self._text(value, what, MAX_NAME_CHARS)
        try:
            return check(name)
        except BadRequest as error:
            raise Malformed(f"{what}: {error.detail}", hint=error.hint) from error

    def _label(self, value: object, what: str, most: int) -> str:
        text = self._text(value, what, most)
        if not text or not text.isprintable():
            raise Malformed(f"{what}: empty, or holds characters that cannot be printed")
        return text

    def _text(self, value: object, what: str, most: int) -> str:
        if not isinstance(value, str) or len(value) > most:
            raise Malformed(f"{what}: not a text of at most {most} characters")
        try:
            self._spend(len(value.encode()))
        except UnicodeEncodeError as error:
            raise Malformed(f"{what}: half of a surrogate pair") from error
        return value

    def _spend(self, size_bytes: int) -> None:
        self._budget -= size_bytes
        if self._budget < 0:
            raise TooLarge(
                f"the record is over the bound of {MAX_RECORD_BYTES} bytes",
                hint="describe fewer endpoints, or leave their schemas out",
            )


_KINDS = {kind.value: kind for kind in EndpointKind}
