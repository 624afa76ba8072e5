"""One connection to one server, from the dial to its end. Nothing outlives it: what shall stand is made again."""

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
from micro_nats_broker.ending import end
from micro_nats_broker.mailbox import MAX_WAITING_BYTES
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.servers import Server
from micro_nats_broker.stored import Stored, StreamGone, read_stored

MAX_UNANSWERED = 10_000
"""Publications that wait for the server's answer on one connection."""

MAX_UNWRITTEN_BYTES = 16 * 1024 * 1024
"""What waits to be written to the server. nats-py's own bound would let the publisher wait without end."""

MAX_ARRIVED = 4_096
"""Messages of one subscription between the socket and its mailbox: what one read of the socket can hold, and more."""

_DENIED = re.compile(r"permissions violation for (publish|subscription) (?:to )?\"(.*?)\"")
_REFUSALS = ("authorization", "authentication", "user revoked", "account")


class Session:
    """See `open_session`. `lost` is set at the end."""

    def __init__(self, server: Server, options: NatsOptions, context: DriverContext) -> None:
        self.server = server
        self.lost = asyncio.Event()
        self.reason = ""
        self._options = options
        self._context = context
        self._is_open = False
        self._refusal: MicroError | None = None
        self._denied: dict[tuple[str, str], None] = {}
        self._asking: list[tuple[str, asyncio.Future[None]]] = []
        self._asked: list[tuple[str, asyncio.Future[None]]] = []
        self._asker: asyncio.Task[None] | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._stores: dict[str, asyncio.Future[Stored]] = {}
        self._stores_inbox = ""
        self._stores_count = 0
        self._lost_messages: dict[int, Callable[[int], None]] = {}
        self.client = Client(must_encrypt=server.is_tls, on_lost=self._line_lost, on_garbage=self._garbage)

    # ------------------------------------------------------------------------------ begin and end

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
                    # Ours is `_keep`: nats-py's own goes on when the task that reads has ended.
                    ping_interval=10**6,
                    pending_size=2 * MAX_UNWRITTEN_BYTES + 2**26,
                    tls_hostname=self.server.tls_hostname or None,
                    **credentials.arguments(),
                )
            if not self.client.is_connected or self.lost.is_set():
                raise Unreachable(f"nats: {self.server.url} closed the connection before it answered")
        except BaseException as error:
            await self.abandon(str(error) or type(error).__name__)
            if isinstance(error, MicroError):
                raise
            if isinstance(error, Exception):
                raise self._translated(error) from error
            raise
        self._is_open = True
        self._keeper = asyncio.get_running_loop().create_task(self._keep())

    def others(self) -> list[tuple[str, int]]:
        """Servers of the cluster that this one tells of."""
        return [(uri.hostname, uri.port) for uri in self.client.discovered_servers if uri.hostname and uri.port]

    async def abandon(self, reason: str) -> None:
        """End it now."""
        self._line_lost(reason)
        await end(self._keeper, self._asker)
        try:
            await self.client.abandon()
        except (OSError, nats.errors.Error, TimeoutError) as error:
            self._context.counters.add("broker_nats_untidy_ends")
            self._context.logger.debug("a connection ended untidily", extra={"reason": str(error)})

    # ------------------------------------------------------------------------------------- publish

    def check_size(self, headers: Mapping[str, str], payload: bytes) -> None:
        """Raise TooLarge for what this server does not take: it would break the connection off."""
        size, bound = envelope.size(headers, payload), self.client.max_payload
        if size > bound:
            raise TooLarge(
                f"a message of {size} bytes with its headers is over the server's max_payload of {bound}",
                hint="raise max_payload in the servers' configuration, or publish where it can be fetched",
            )

    async def publish(self, subject: str, headers: dict[str, str], payload: bytes) -> None:
        """Return when the server has taken it. Raises LinkLost, Forbidden, Overloaded, TooLarge."""
        await self._write(subject, headers, payload)
        await self.answered(subject)

    async def answered(self, subject: str = "") -> None:
        """Return when the server has taken all that was written; many who ask together share one question.

        Raises LinkLost, and Forbidden when it refused `subject` meanwhile.
        """
        self._check_open()
        answer: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._asking.append((subject, answer))
        if self._asker is None or self._asker.done():
            self._asker = asyncio.get_running_loop().create_task(self._ask())
        await answer

    async def store(self, subject: str, headers: dict[str, str], payload: bytes) -> Stored:
        """Return when JetStream has it. Raises StreamGone, LinkLost, Overloaded, TooLarge, Unreachable."""
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
                f"JetStream did not answer within {self._options.answer_timeout_s:.3g} s", hint="is it without leader?"
            ) from None
        finally:
            self._stores.pop(token, None)

    async def tell(self, subject: str, payload: bytes, reply: str = "") -> None:
        """Write without waiting for anything. Raises LinkLost, Overloaded."""
        await self._write(subject, None, payload, reply=reply)

    async def _write(self, subject: str, headers: dict[str, str] | None, payload: bytes, reply: str = "") -> None:
        self._check_open()
        if headers is not None:
            self.check_size(headers, payload)
        waiting = len(self._asking) + len(self._asked) + len(self._stores)
        if waiting > MAX_UNANSWERED or self.client.pending_data_size + len(payload) > MAX_UNWRITTEN_BYTES:
            raise Overloaded("too much waits for the NATS server", hint="publish more slowly")
        try:
            await self.client.publish(subject, payload, reply=reply, headers=headers)
        except nats.errors.Error as error:
            raise LinkLost(f"nats: {self.server.url}: {error}") from error

    # ----------------------------------------------------------------------------------- subscribe

    async def subscribe(
        self, subject: str, queue: str, arrived: Callable[[Msg], Awaitable[None]], lost: Callable[[int], None]
    ) -> Subscription:
        """Return when it is in force; `lost` is told of messages that did not fit. Raises LinkLost, Forbidden."""
        self._check_open()
        try:
            subscription = await self.client.subscribe(
                subject,
                queue=queue,
                cb=arrived,
                pending_msgs_limit=MAX_ARRIVED,
                pending_bytes_limit=MAX_WAITING_BYTES + 2**26,
            )
        except nats.errors.Error as error:
            raise LinkLost(f"nats: {self.server.url}: {error}") from error
        self._lost_messages[id(subscription)] = lost
        await self.answered()
        # The server's words come in lower case.
        if ("subscription", subject.lower()) in self._denied:
            await self.unsubscribe(subscription)
            raise Forbidden(
                f"the NATS server does not allow this user to subscribe to {subject}", hint="permissions of the user"
            )
        return subscription

    async def unsubscribe(self, subscription: Subscription, *, drain_s: float = 0.0) -> None:
        """End a subscription; with `drain_s`, what the server has sent before it knew still arrives."""
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
            self._context.counters.add("broker_nats_untidy_ends")
            self._context.logger.debug("a subscription ended untidily", extra={"reason": str(error)})

    # -------------------------------------------------------------------------------------- inside

    async def _ask(self) -> None:
        while self._asking and not self.lost.is_set():
            self._asked, self._asking = self._asking, []
            try:
                await self.client.rtt(timeout=self._options.answer_timeout_s)  # type: ignore[arg-type]  # seconds
            except (nats.errors.Error, OSError, TimeoutError) as error:
                self._line_lost(f"no answer within {self._options.answer_timeout_s:.3g} s ({type(error).__name__})")
                return
            answered, self._asked = self._asked, []
            for subject, answer in answered:
                if answer.done():
                    continue
                if ("publish", subject.lower()) in self._denied:
                    _fail(
                        answer,
                        Forbidden(
                            f"the NATS server does not allow this user to publish to {subject}",
                            hint="permissions of the user",
                        ),
                    )
                else:
                    answer.set_result(None)
            self._denied = {denial: None for denial in self._denied if denial[0] != "publish"}

    async def _keep(self) -> None:
        """Ask for a sign of life; `_ask` ends the session where there is none."""
        while not self.lost.is_set():
            await asyncio.sleep(self._options.keepalive_s)
            try:
                await self.answered()
            except MicroError:
                return

    async def _stored(self, message: Msg) -> None:
        answer = self._stores.get(message.subject)
        if answer is None or answer.done():
            return
        try:
            if (message.headers or {}).get("Status") == "503":
                raise StreamGone("no stream takes this subject", hint="is JetStream on? nats-server -js")
            answer.set_result(read_stored(message.data))
        except MicroError as error:
            _fail(answer, error)

    async def _client_error(self, error: Exception) -> None:
        """What nats-py reports beside the calls: before we are in, the reason why not."""
        if not self._is_open:
            raise error
        if isinstance(error, nats.errors.SlowConsumerError):
            tell = self._lost_messages.get(id(error.sub))
            if tell is not None:
                tell(1)
            return
        denied = _DENIED.search(str(error).lower())
        if denied is not None:
            if len(self._denied) < MAX_UNANSWERED:
                self._denied[denied[1], denied[2]] = None
            return
        self._context.logger.info("nats", extra={"reason": str(error) or type(error).__name__})

    def _translated(self, error: Exception) -> MicroError:
        text = f"nats: {self.server.url}: {error or type(error).__name__}"
        if isinstance(error, nats.errors.SecureConnWantedError):
            return Unauthorized(
                f"nats: {self.server.url} does not encrypt", hint="turn TLS on in the server, or write nats://"
            )
        if "certificate required" in str(error).lower().replace("_", " "):
            return Unauthorized(text, hint="tls_cert_file and tls_key_file: the server wants a certificate of ours")
        if "certificate" in str(error).lower():
            return Unauthorized(text, hint="tls_ca_file: who may vouch for the server; tls_hostname: its name")
        if any(word in str(error).lower() for word in _REFUSALS):
            return Unauthorized(text, hint="check user and password, token, nkey_seed or creds_file")
        if isinstance(error, TimeoutError):
            text = f"nats: no answer from {self.server.url} within {self._options.connect_timeout_s:.3g} s"
        return Unreachable(text, hint="is nats-server running there? set nats.url")

    def _garbage(self) -> None:
        self._context.counters.add("broker_nats_garbage")

    def _check_open(self) -> None:
        if self.lost.is_set():
            raise LinkLost(f"the connection to {self.server.url} was lost: {self.reason}")

    def _line_lost(self, reason: str) -> None:
        if self.lost.is_set():
            return
        self.reason = reason
        self.lost.set()
        self.client.line.lose(reason)
        error = LinkLost(
            f"the connection to {self.server.url} was lost before it answered: {reason}",
            hint="whether the message was taken is not known",
        )
        for _, answer in (*self._asked, *self._asking):
            _fail(answer, error)
        for stored in self._stores.values():
            _fail(stored, error)
        self._asked, self._asking = [], []


def _fail(answer: asyncio.Future[None] | asyncio.Future[Stored], error: MicroError) -> None:
    if not answer.done():
        answer.set_exception(error)
        # Whoever asked may have gone; an error that nobody fetches is no fault.
        answer.exception()


async def open_session(
    server: Server, credentials: Credentials, options: NatsOptions, context: DriverContext
) -> Session:
    """Connect to `server`. Raises Unreachable, Unauthorized, OptionError."""
    session = Session(server, options, context)
    await session.open(credentials)
    return session
