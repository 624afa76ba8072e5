"""Conversion of instances to plain maps for JSON and msgpack, and back. Pure.

A registry stores and sends `instance_to_dict(instance)`, and reads data from a peer or a file with `instance_from_dict`, which
validates it. Fields with their default value are left out. Unknown fields are ignored, so that later versions can add fields.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from micro_core.contract.errors import BadRequest, Malformed, TooLarge
from micro_core.contract.names import MAX_NAME_CHARS, check_endpoint_name, check_service_name
from micro_core.contract.registry import Endpoint, EndpointKind, Instance

MAX_RECORD_BYTES = 64 * 1024
"""Maximum size of a record: all strings and values together. `check_instance` raises TooLarge above it.

The limit is low because every watcher stores every record. A driver whose back end has a lower limit raises TooLarge itself
and states that limit."""

MAX_ENDPOINTS = 512
"""Maximum number of endpoints of an instance, including its subscriptions (at most 256)."""

MAX_METADATA = 64
"""Maximum number of metadata entries of an instance."""

MAX_METADATA_KEY_CHARS = 128
"""Maximum length of a metadata key, of a field name and of a key in a schema."""

MAX_METADATA_VALUE_CHARS = 4_096
"""Maximum length of a metadata value."""

MAX_ADDRESS_CHARS = 1_024
"""Maximum length of an address. The path of a Unix socket has at most 108 characters, and a host name at most 253."""

MAX_VERSION_CHARS = 128
"""Maximum length of the version of a service."""

MAX_DESCRIPTION_CHARS = 2_000
"""Maximum length of the description of an endpoint."""

MAX_SCHEMA_DEPTH = 32
"""Maximum nesting of a JSON Schema. Deeper schemas are refused before they exhaust the stack."""

_VALUE_BYTES = 8
"""Size that a number, a boolean or a container counts towards MAX_RECORD_BYTES."""


def instance_to_dict(instance: Instance) -> dict[str, object]:
    """Return `instance` as a plain map of strings, numbers, lists and maps.

    Does not validate the instance. The `register` method of a driver calls `check_instance` first.
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
    """Build an instance from untrusted data: a map that was decoded from JSON or msgpack.

    The result shares no mutable object with `value`.

    Raises:
        Malformed: A field is missing, has the wrong type, or exceeds a limit; the detail contains the name of the field.
    """
    try:
        return _Reader().read_instance(value)
    except TooLarge as error:
        raise Malformed(error.detail, hint=error.hint) from error


def check_instance(instance: Instance) -> Instance:
    """Return a validated deep copy of `instance`. The `register` method of a driver calls this first.

    A driver itself only checks limits of its back end that are lower.

    Raises:
        BadRequest: Other nodes would refuse the record; the detail contains the name of the field.
        TooLarge: The record exceeds MAX_RECORD_BYTES.
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
    """Reads one record. `_budget` is the unused part of MAX_RECORD_BYTES."""

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
            raise Malformed(f"endpoints: not a list of at most {MAX_ENDPOINTS} entries")
        return tuple([self._endpoint(item) for item in value])

    def _endpoint(self, value: object) -> Endpoint:
        record = self._map(value, "endpoint", 64)
        kind = record.get("kind", EndpointKind.UNARY.value)
        if not isinstance(kind, str) or kind not in _KINDS:
            raise Malformed(f"endpoint: unknown kind {kind!r:.40}, expected one of {', '.join(_KINDS)}")
        idempotent = record.get("idempotent", False)
        if not isinstance(idempotent, bool):
            raise Malformed("endpoint: idempotent is not a boolean")
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
        self._consume_budget(_VALUE_BYTES)
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
        raise Malformed(f"schema: contains a {type(value).__name__}, which JSON does not support")

    def _map(
        self, value: object, what: str, max_entries: int, max_key_chars: int = MAX_METADATA_KEY_CHARS
    ) -> Mapping[str, object]:
        if not isinstance(value, Mapping) or len(value) > max_entries:
            raise Malformed(f"{what}: not a map of at most {max_entries} entries")
        for key in value:
            self._text(key, f"{what}: a key", max_key_chars)
        return value

    def _name(self, value: object, what: str, check: Callable[[str], str]) -> str:
        name = self._text(value, what, MAX_NAME_CHARS)
        try:
            return check(name)
        except BadRequest as error:
            raise Malformed(f"{what}: {error.detail}", hint=error.hint) from error

    def _label(self, value: object, what: str, max_chars: int) -> str:
        text = self._text(value, what, max_chars)
        if not text or not text.isprintable():
            raise Malformed(f"{what}: empty, or contains unprintable characters")
        return text

    def _text(self, value: object, what: str, max_chars: int) -> str:
        if not isinstance(value, str) or len(value) > max_chars:
            raise Malformed(f"{what}: not a string of at most {max_chars} characters")
        try:
            self._consume_budget(len(value.encode()))
        except UnicodeEncodeError as error:
            raise Malformed(f"{what}: contains an unpaired surrogate") from error
        return value

    def _consume_budget(self, size_bytes: int) -> None:
        self._budget -= size_bytes
        if self._budget < 0:
            raise TooLarge(
                f"the record exceeds the limit of {MAX_RECORD_BYTES} bytes",
                hint="register fewer endpoints, or leave out their schemas",
            )


_KINDS = {kind.value: kind for kind in EndpointKind}
