"""One connection to one server. Subscriptions end with it and are created again on the next session."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping

import nats.errors
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from micro_core.contract import (
    DriverContext,
    Forbidden,
    LinkLost,
    MicroError,
    Overloaded,
    TooLarge,
    Unauthorized,
    Unreachable,
)
from micro_nats_broker import envelope
from micro_nats_broker.client import Client
from micro_nats_broker.credentials import Credentials
from micro_nats_broker.mailbox import MAX_WAITING_BYTES
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.servers import Server
from micro_nats_broker.stored import Stored, StreamLost, read_stored
from micro_nats_broker.task_cancellation import cancel_and_wait

MAX_UNANSWERED = 10_000
"""Maximum number of publications waiting for a confirmation on one connection."""

MAX_UNWRITTEN_BYTES = 16 * 1024 * 1024
"""Maximum size of unwritten data. With the limit of nats-py, publishers would wait without a time limit."""

MAX_UNREAD = 4_096
"""Maximum number of messages of one subscription between the socket and its mailbox: more than one read contains."""

_DENIED = re.compile(r"permissions violation for (publish|subscription) (?:to )?\"(.*?)\"")
_REFUSALS = ("authorization", "authentication", "user revoked", "account")


class Session:
    """A session with one server, created by `open_session`. `lost` is set when it ends."""

    def __init__(self, server: Server, options: NatsOptions, context: DriverContext) -> None:
        self.server = server
        self.lost = asyncio.Event()
        self.reason = ""
        self._options = options
        self._context = context
        self._is_open = False
        self._refusal: MicroError | None = None
        self._denied: dict[tuple[str, str], None] = {}
        self._pending_confirmations: list[tuple[str, asyncio.Future[None]]] = []
        self._sent_confirmations: list[tuple[str, asyncio.Future[None]]] = []
        self._confirmation_task: asyncio.Task[None] | None = None
        self._keepalive_task: asyncio.Task[None] | None = None
        self._stores: dict[str, asyncio.Future[Stored]] = {}
        self._stores_inbox = ""
        self._stores_count = 0
        self._lost_messages: dict[int, Callable[[int], None]] = {}
        self.client = Client(
            must_encrypt=server.is_tls, on_lost=self._connection_lost, on_garbage=self._count_invalid_message
        )

    # -------------------------------------------------------------------------- open and close

    async def open(self, credentials: Credentials) -> None:
        """Connect and log in. Raises Unreachable, Unauthorized, OptionError."""
        options = self._options
        try:
            async with asyncio.timeout(options.connect_timeout_s):
                await self.client.connect(
                    [self.server.url],
                    name=f"micro {self._context.network}@{self._context.site} {self._context.node_id[:8]}",
                    error_cb=self._client_error,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    connect_timeout=max(1, round(options.connect_timeout_s)),
                    # Use `_run_keepalive` instead: the one of nats-py continues after its reading task has ended.
                    ping_interval=10**6,
                    pending_size=2 * MAX_UNWRITTEN_BYTES + 2**26,
                    tls_hostname=self.server.tls_hostname or None,
                    **credentials.arguments(),
                )
            if not self.client.is_connected or self.lost.is_set():
                raise Unreachable(f"nats: {self.server.url} closed the connection before it responded")
        except BaseException as error:
            await self.abandon(str(error) or type(error).__name__)
            if isinstance(error, MicroError):
                raise
            if isinstance(error, Exception):
                raise self._to_micro_error(error) from error
            raise
        self._is_open = True
        self._keepalive_task = asyncio.get_running_loop().create_task(self._run_keepalive())

    def discovered_servers(self) -> list[tuple[str, int]]:
        """Return the servers of the cluster that this server announces."""
        return [(uri.hostname, uri.port) for uri in self.client.discovered_servers if uri.hostname and uri.port]

    async def abandon(self, reason: str) -> None:
        """Close the connection immediately."""
        self._connection_lost(reason)
        await cancel_and_wait(self._keepalive_task, self._confirmation_task)
        try:
            await self.client.abandon()
        except (OSError, nats.errors.Error, TimeoutError) as error:
            self._context.counters.add("broker_nats_close_failures")
            self._context.logger.debug("closing a connection failed", extra={"reason": str(error)})

    # ------------------------------------------------------------------------------------- publish

    def check_size(self, headers: Mapping[str, str], payload: bytes) -> None:
        """Check the size of a message, since the server would close the connection. Raises TooLarge."""
        size, limit = envelope.size(headers, payload), self.client.max_payload
        if size > limit:
            raise TooLarge(
                f"a message of {size} bytes including headers exceeds max_payload of the server ({limit})",
                hint="raise max_payload in the configuration of the servers, or publish a reference to the data",
            )

    async def publish(self, subject: str, headers: dict[str, str], payload: bytes) -> None:
        """Publish a message; return when the server has confirmed it. Raises LinkLost, Forbidden, Overloaded, TooLarge."""
        await self._write(subject, headers, payload)
        await self.confirmed(subject)

    async def confirmed(self, subject: str = "") -> None:
        """Wait until the server has processed all data written so far; concurrent callers share one request.

        Raises LinkLost, and Forbidden if the server has denied publishing to `subject`.
        """
        self._check_open()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending_confirmations.append((subject, answer))
        if self._confirmation_task is None or self._confirmation_task.done():
            self._confirmation_task = asyncio.get_running_loop().create_task(self._confirm())
        await answer

    async def store(self, subject: str, headers: dict[str, str], payload: bytes) -> Stored:
        """Publish a message; return when JetStream has stored it.

        Raises StreamLost, LinkLost, Overloaded, TooLarge, Unreachable.
        """
        self._check_open()
        if not self._stores_inbox:
            self._stores_inbox = self.client.new_inbox()
            await self.client.subscribe(f"{self._stores_inbox}.*", cb=self._stored)
        self._stores_count += 1
        token = f"{self._stores_inbox}.{self._stores_count}"
        answer: asyncio.Future[Stored] = asyncio.get_running_loop().create_future()
        self._stores[token] = answer
        try:
            await self._write(subject, headers, payload, reply=token)
            async with asyncio.timeout(self._options.answer_timeout_s):
                return await answer
        except TimeoutError:
            raise LinkLost(
                f"JetStream did not respond within {self._options.answer_timeout_s:.3g} s",
                hint="does the stream have a leader?",
            ) from None
        finally:
            self._stores.pop(token, None)

    async def write(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Publish without waiting for a confirmation. Raises LinkLost, Overloaded."""
        await self._write(subject, None, payload, reply=reply)

    async def _write(self, subject: str, headers: dict[str, str] | None, payload: bytes, reply: str = "") -> None:
        self._check_open()
        if headers is not None:
            self.check_size(headers, payload)
        waiting = len(self._pending_confirmations) + len(self._sent_confirmations) + len(self._stores)
        if waiting > MAX_UNANSWERED or self.client.pending_data_size + len(payload) > MAX_UNWRITTEN_BYTES:
            raise Overloaded("too much data is waiting for the NATS server", hint="publish more slowly")
        try:
            await self.client.publish(subject, payload, reply=reply, headers=headers)
        except nats.errors.Error as error:
            raise LinkLost(f"nats: {self.server.url}: {error}") from error

    # ----------------------------------------------------------------------------------- subscribe

    async def subscribe(
        self, subject: str, queue: str, arrived: Callable[[Msg], Awaitable[None]], lost: Callable[[int], None]
    ) -> Subscription:
        """Subscribe; return when the server has confirmed it. `lost` is called with the number of dropped messages.

        Raises LinkLost, Forbidden.
        """
        self._check_open()
        try:
            subscription = await self.client.subscribe(
                subject,
                queue=queue,
                cb=arrived,
                pending_msgs_limit=MAX_UNREAD,
                pending_bytes_limit=MAX_WAITING_BYTES + 2**26,
            )
        except nats.errors.Error as error:
            raise LinkLost(f"nats: {self.server.url}: {error}") from error
        self._lost_messages[id(subscription)] = lost
        await self.confirmed()
        # The error messages of the server are in lower case.
        if ("subscription", subject.lower()) in self._denied:
            await self.unsubscribe(subscription)
            raise Forbidden(
                f"the NATS server denies this user to subscribe to {subject}", hint="check the permissions of the user"
            )
        return subscription

    async def unsubscribe(self, subscription: Subscription, *, drain_s: float = 0.0) -> None:
        """End a subscription; with `drain_s`, messages already sent by the server are still delivered."""
        self._lost_messages.pop(id(subscription), None)
        if self.lost.is_set():
            return
        try:
            if drain_s:
                async with asyncio.timeout(drain_s):
                    await subscription.drain()
            else:
                await subscription.unsubscribe()
        except (nats.errors.Error, TimeoutError) as error:
            self._context.counters.add("broker_nats_close_failures")
            self._context.logger.debug("closing a subscription failed", extra={"reason": str(error)})

    # ------------------------------------------------------------------------------------ internal

    async def _confirm(self) -> None:
        while self._pending_confirmations and not self.lost.is_set():
            self._sent_confirmations, self._pending_confirmations = self._pending_confirmations, []
            try:
                await self.client.rtt(timeout=self._options.answer_timeout_s)  # type: ignore[arg-type]  # seconds
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self._connection_lost(
                    f"no response within {self._options.answer_timeout_s:.3g} s ({type(error).__name__})"
                )
                return
            confirmed, self._sent_confirmations = self._sent_confirmations, []
            for subject, answer in confirmed:
                if answer.done():
                    continue
                if ("publish", subject.lower()) in self._denied:
                    _fail(
                        answer,
                        Forbidden(
                            f"the NATS server denies this user to publish to {subject}",
                            hint="check the permissions of the user",
                        ),
                    )
                else:
                    answer.set_result(None)
            self._denied = {denial: None for denial in self._denied if denial[0] != "publish"}

    async def _run_keepalive(self) -> None:
        """Send keepalives; `_confirm` ends the session if there is no response."""
        while not self.lost.is_set():
            await asyncio.sleep(self._options.keepalive_s)
            try:
                await self.confirmed()
            except MicroError:
                return

    async def _stored(self, message: Msg) -> None:
        answer = self._stores.get(message.subject)
        if answer is None or answer.done():
            return
        try:
            if (message.headers or {}).get("Status") == "503":
                raise StreamLost("no stream stores this subject", hint="is JetStream enabled? nats-server -js")
            answer.set_result(read_stored(message.data))
        except MicroError as error:
            _fail(answer, error)

    async def _client_error(self, error: Exception) -> None:
        """Handle errors that nats-py reports outside of calls; before the login, they are the reason of its failure."""
        if not self._is_open:
            raise error
        if isinstance(error, nats.errors.SlowConsumerError):
            report = self._lost_messages.get(id(error.sub))
            if report is not None:
                report(1)
            return
        denied = _DENIED.search(str(error).lower())
        if denied is not None:
            if len(self._denied) < MAX_UNANSWERED:
                self._denied[denied[1], denied[2]] = None
            return
        self._context.logger.info("NATS error", extra={"reason": str(error) or type(error).__name__})

    def _to_micro_error(self, error: Exception) -> MicroError:
        text = f"nats: {self.server.url}: {error or type(error).__name__}"
        if isinstance(error, nats.errors.SecureConnWantedError):
            return Unauthorized(
                f"nats: {self.server.url} does not support TLS", hint="enable TLS in the server, or use nats://"
            )
        if "certificate required" in str(error).lower().replace("_", " "):
            return Unauthorized(
                text, hint="set tls_cert_file and tls_key_file: the server requires a client certificate"
            )
        if "certificate" in str(error).lower():
            return Unauthorized(
                text, hint="set tls_ca_file to the authority of the server, or tls_hostname to its name"
            )
        if any(phrase in str(error).lower() for phrase in _REFUSALS):
            return Unauthorized(text, hint="check user and password, token, nkey_seed or creds_file")
        if isinstance(error, TimeoutError):
            text = f"nats: no response from {self.server.url} within {self._options.connect_timeout_s:.3g} s"
        return Unreachable(text, hint="is nats-server running there? check nats.url")

    def _count_invalid_message(self) -> None:
        self._context.counters.add("broker_nats_garbage")

    def _check_open(self) -> None:
        if self.lost.is_set():
            raise LinkLost(f"the connection to {self.server.url} was lost: {self.reason}")

    def _connection_lost(self, reason: str) -> None:
        if self.lost.is_set():
            return
        self.reason = reason
        self.lost.set()
        self.client.nats_transport.lose(reason)
        error = LinkLost(
            f"the connection to {self.server.url} was lost before the confirmation: {reason}",
            hint="it is unknown whether the server has accepted the message",
        )
        for _, answer in (*self._sent_confirmations, *self._pending_confirmations):
            _fail(answer, error)
        for stored in self._stores.values():
            _fail(stored, error)
        self._sent_confirmations, self._pending_confirmations = [], []


def _fail(answer: asyncio.Future[None] | asyncio.Future[Stored], error: MicroError) -> None:
    if not answer.done():
        answer.set_exception(error)
        # Mark the exception as retrieved, in case the waiter was cancelled.
        answer.exception()


async def open_session(
    server: Server, credentials: Credentials, options: NatsOptions, context: DriverContext
) -> Session:
    """Connect to `server` and log in. Raises Unreachable, Unauthorized, OptionError."""
    session = Session(server, options, context)
    await session.open(credentials)
    return session
