"""Connections to Redis with the redis library: a single server, Sentinel or a cluster.

There is one object per registry, in one event loop. It raises only errors of the contract.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol, TypeVar

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.client import PubSub
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.credentials import CredentialProvider
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from micro_core.contract import Clock, Closed, MicroError, OptionError, Unreachable
from micro_redis_registry.addresses import Layout, ServerAddress
from micro_redis_registry.errors import LIBRARY_ERRORS, to_contract_error
from micro_redis_registry.options import RedisOptions
from micro_redis_registry.scripts import Script

MAX_CONCURRENT_COMMANDS = 8
"""Maximum number of connections of one registry, without that of the feed; further commands wait."""

CLUSTER_RETRIES = 2
"""Number of retries if a node of a cluster is down; each retry first asks the other nodes which one has the keys."""

MAX_PASSWORD_FILE_BYTES = 4_096
"""Maximum size of a password file."""

T = TypeVar("T")


class _Client(Protocol):
    """The methods of `Redis` and `RedisCluster` that are used here."""

    def execute_command(self, *args: Any, **options: Any) -> Awaitable[Any]: ...

    async def aclose(self) -> None: ...


class PasswordFile(CredentialProvider):
    """Credentials whose password is read from a file for each new connection, so that it may change."""

    def __init__(self, path: str, username: str) -> None:
        self._path = Path(path).expanduser()
        self._username = username

    def get_credentials(self) -> tuple[str] | tuple[str, str]:
        """Return (user name, password). Raises RedisConnectionError if the file cannot be read."""
        try:
            with self._path.open("rb") as file:
                password = file.read(MAX_PASSWORD_FILE_BYTES).decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise RedisConnectionError(f"cannot read the password file {self._path}: {error}") from error
        return (self._username, password) if self._username else (password,)

    async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
        """Read the credentials in a thread; see `get_credentials`."""
        return await asyncio.to_thread(self.get_credentials)


class Server:
    """The Redis server, or the server of a cluster that holds the keys of the namespace.

    `routing_key` is a key of the namespace. Raises OptionError for inconsistent options.
    """

    def __init__(self, address: ServerAddress, options: RedisOptions, clock: Clock, routing_key: str) -> None:
        self.where = str(address)
        self.timeout_s = options.timeout_s
        self._address = address
        self._options = options
        self._now = clock.now
        self._routing_key = routing_key
        self._settings = _connection_settings(address, options)
        self._slots = asyncio.Semaphore(MAX_CONCURRENT_COMMANDS)
        self._failed_at = -math.inf
        self._failure: MicroError | None = None
        self._client: _Client | None = None
        self._sentinel: Sentinel | None = None

    def open(self) -> None:
        """Create the client; it connects on first use."""
        if self._address.layout is Layout.CLUSTER:
            nodes = [ClusterNode(host, port) for host, port in self._address.hosts]
            settings = self._settings | {"retry": Retry(NoBackoff(), CLUSTER_RETRIES)}
            self._client = RedisCluster(startup_nodes=nodes, require_full_coverage=False, **settings)
        elif self._address.layout is Layout.SENTINEL:
            login = {"username": self._options.sentinel_username, "password": self._options.sentinel_password}
            sentinel_settings = {
                **{key: value for key, value in self._settings.items() if key not in _LOGIN_SETTINGS},
                **{key: value for key, value in login.items() if value},
            }
            self._sentinel = Sentinel(  # type: ignore[no-untyped-call]
                self._address.hosts, sentinel_kwargs=sentinel_settings, **self._settings
            )
            self._client = self._sentinel.master_for(self._address.master, db=self._address.database)
        else:
            self._client = self._plain_client()

    async def close(self) -> None:
        """Disconnect. Safe to call twice."""
        client, self._client = self._client, None
        sentinel, self._sentinel = self._sentinel, None
        for connection in (client, sentinel):
            if connection is not None:
                try:
                    await connection.aclose()
                except LIBRARY_ERRORS:
                    continue  # the connection is already lost

    async def run(
        self, script: Script, keys: Sequence[str], arguments: Callable[[], Sequence[str | bytes]]
    ) -> list[Any]:
        """Run `script` and return its result; `arguments` is called when a connection is free.

        Raises Closed, Unreachable, Overloaded, Unauthorized, Forbidden or InternalError.
        """

        async def evaluate() -> list[Any]:
            client = self._open_client()
            values = arguments()
            try:
                answer = await client.execute_command("EVALSHA", script.digest, len(keys), *keys, *values)
            except NoScriptError:
                answer = await client.execute_command("EVAL", script.source, len(keys), *keys, *values)
            if not isinstance(answer, list):
                raise Unreachable("redis returned an unexpected result of a script", at=self.where)
            return answer

        return await self._attempt(evaluate)

    async def read_setting(self, name: str) -> str:
        """Return a setting of the server that holds the keys. Raises Forbidden if CONFIG is not permitted."""

        async def query() -> str:
            holder, is_own = await self._holder()
            try:
                answer = await holder.config_get(name)
            finally:
                if is_own:
                    await holder.aclose()
            return str(answer.get(name, ""))

        return await self._attempt(query)

    @asynccontextmanager
    async def subscription(self) -> AsyncIterator[PubSub]:
        """Open a connection for subscriptions to the server that holds the keys.

        Errors of the library inside the context are translated into errors of the contract.
        """
        try:
            async with asyncio.timeout(self.timeout_s):
                holder, is_own = await self._holder()
            try:
                pubsub = holder.pubsub()
                try:
                    yield pubsub
                finally:
                    await pubsub.aclose()  # type: ignore[no-untyped-call]
            finally:
                if is_own:
                    await holder.aclose()
        except LIBRARY_ERRORS as error:
            raise to_contract_error(error, self.where) from error

    async def wait_until_subscribed(self, pubsub: PubSub) -> None:
        """Wait for the confirmation of a subscription. Raises errors of the library, and TimeoutError after `timeout_s`."""
        async with asyncio.timeout(self.timeout_s):
            while True:
                message = await pubsub.get_message(timeout=None)
                if message is not None and message["type"] in ("subscribe", "psubscribe"):
                    return

    async def _attempt(self, call: Callable[[], Awaitable[T]]) -> T:
        """Wait for a free connection, then run `call` within `timeout_s`; retry once after a lost connection."""
        queued_at = self._now()
        async with self._slots:
            if self._failed_at > queued_at and self._failure is not None:
                # Another call failed while this one was queued, so do not wait for another timeout.
                raise self._failure
            try:
                async with asyncio.timeout(self.timeout_s):
                    try:
                        return await call()
                    except RedisConnectionError as error:
                        if type(error) is not RedisConnectionError:
                            raise  # e.g. a refused login, which is not a lost connection
                        return await call()
            except LIBRARY_ERRORS as error:
                failure = to_contract_error(error, self.where)
                if isinstance(failure, Unreachable):
                    self._failed_at, self._failure = self._now(), failure
                raise failure from error

    def _open_client(self) -> _Client:
        if self._client is None:
            raise Closed("the redis registry is not started or closed")
        return self._client

    async def _holder(self) -> tuple[Redis, bool]:
        """Return a client of the server that holds the keys, and whether the caller must close it."""
        client = self._open_client()
        if isinstance(client, RedisCluster):
            await client.initialize()
            node = client.get_node_from_key(self._routing_key)
            if node is None:
                raise Unreachable("no node of the cluster holds the keys", at=self.where, hint="see CLUSTER SLOTS")
            return Redis(host=node.host, port=int(node.port), **self._settings), True
        assert isinstance(client, Redis)
        return client, False

    def _plain_client(self) -> Redis:
        if self._address.path:
            return Redis(unix_socket_path=self._address.path, db=self._address.database, **self._settings)
        host, port = self._address.hosts[0]
        return Redis(host=host, port=port, db=self._address.database, **self._settings)


_LOGIN_SETTINGS = ("username", "password", "credential_provider")


def _connection_settings(address: ServerAddress, options: RedisOptions) -> dict[str, Any]:
    """Return the settings of every connection. Raises OptionError for inconsistent options."""
    username = options.username or address.username
    password = options.password or address.password
    settings: dict[str, Any] = {
        # RESP 2 is sufficient and available in every version. Retries inside the library would hide a lost feed.
        "protocol": 2,
        "retry": Retry(NoBackoff(), 0),
        "driver_info": None,
        "socket_timeout": options.timeout_s,
        "socket_connect_timeout": options.timeout_s,
        "socket_keepalive": True,
    }
    if address.path:
        del settings["socket_keepalive"]
    if options.password_file:
        if password:
            raise OptionError("redis: both password and password_file are set", hint="set only one of them")
        settings["credential_provider"] = PasswordFile(options.password_file, username)
    elif password:
        settings |= {"password": password, **({"username": username} if username else {})}
    elif username:
        raise OptionError("redis: username is set without a password", hint="set redis.password or redis.password_file")
    files = {"ssl_ca_certs": options.ca_file, "ssl_certfile": options.cert_file}
    if address.is_tls:
        settings |= {
            "ssl": True,
            "ssl_check_hostname": options.check_hostname,
            "ssl_min_version": ssl.TLSVersion.TLSv1_2,
        }
        settings |= {key: str(Path(name).expanduser()) for key, name in files.items() if name}
        if options.cert_file:
            settings["ssl_keyfile"] = str(Path(options.key_file or options.cert_file).expanduser())
        for name in (options.ca_file, options.cert_file, options.key_file):
            if name and not Path(name).expanduser().is_file():
                raise OptionError(f"redis: file not found: {name}", hint="check ca_file, cert_file and key_file")
    elif any(files.values()):
        raise OptionError("redis: ca_file and cert_file require TLS", hint="use rediss instead of redis in the url")
    return settings
