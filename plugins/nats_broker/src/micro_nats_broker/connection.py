"""Maintain one session with the cluster: dial, prepare, wait for the end, and reconnect with growing pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from micro_core.contract import Closed, ConfigError, DriverContext, MicroError, Unauthorized, Unreachable
from micro_nats_broker.credentials import Credentials
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.servers import Server, ServerPool
from micro_nats_broker.session import Session, open_session
from micro_nats_broker.task_cancellation import cancel_and_wait

FAILOVER_S = 0.5
"""Seconds for which a publisher waits for the next server after a loss, before it raises Unreachable."""


class Connection:
    """The connection to a cluster. `session` is the current session, or None; `prepare` is called with each new session."""

    def __init__(
        self,
        servers: list[Server],
        options: NatsOptions,
        context: DriverContext,
        prepare: Callable[[Session], Awaitable[None]],
    ) -> None:
        self.session: Session | None = None
        self._options = options
        self._context = context
        self._prepare = prepare
        self._pool = ServerPool(servers, context.random, retry_s=options.retry_s)
        self._credentials: Credentials | None = None
        self._changed = asyncio.Event()
        self._lost_at = 0.0
        self._failure: MicroError | None = None
        self._first_attempt_failed = asyncio.Event()
        self._reconnect_task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Connect. If no server is reachable, the connection is retried in the background.

        Raises:
            Unauthorized: A server refuses the credentials.
            ConfigError: A server refuses the connection for another reason, or the credentials cannot be read.
        """
        self._credentials = Credentials(self._options)
        self._lost_at = self._context.clock.now()
        self._reconnect_task = asyncio.get_running_loop().create_task(self._run())
        wait_s = self._options.subscribe_timeout_s
        try:
            async with asyncio.timeout(wait_s):
                await self._wait_for_first_result()
        except TimeoutError:
            self._context.counters.add("broker_nats_started_without_server")
            self._context.logger.warning(
                "no NATS server; continuing without a connection", extra={"reason": str(self._failure or "no answer")}
            )
        failure = self._failure
        if self.session is None and isinstance(failure, (Unauthorized, ConfigError)):
            await self.close()
            raise failure

    async def close(self) -> None:
        """Disconnect. Safe to call twice."""
        self._is_closed = True
        self._changed.set()
        await cancel_and_wait(self._reconnect_task)
        session, self.session = self.session, None
        if session is not None:
            await session.abandon("closed")

    async def current(self, wait_s: float = 0.0) -> Session:
        """Return the current session; wait briefly after a loss, at least `wait_s`. Raises Unreachable, Closed."""
        if self.session is None:
            left_s = max(wait_s, self._lost_at + FAILOVER_S - self._context.clock.now())
            if left_s > 0:
                try:
                    async with asyncio.timeout(left_s):
                        return await self.next()
                except TimeoutError:
                    pass
        self._check_open()
        if self.session is None:
            reason = f": {self._failure.detail}" if self._failure is not None else ""
            raise Unreachable(
                f"no NATS server is connected{reason}", hint="publish again later; the message was not sent"
            )
        return self.session

    async def next(self) -> Session:
        """Wait for a session without a time limit. Raises Closed."""
        while self.session is None:
            self._check_open()
            await self._changed.wait()
        return self.session

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("this broker is closed")
        if self._reconnect_task is None:
            raise Closed("this broker is not started", hint="await start() first")

    async def _wait_for_first_result(self) -> None:
        """Wait until there is a session, or a failure that a retry cannot fix."""
        while self.session is None and not isinstance(self._failure, (Unauthorized, ConfigError)):
            self._first_attempt_failed.clear()
            waiters = [asyncio.ensure_future(event.wait()) for event in (self._changed, self._first_attempt_failed)]
            try:
                await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for waiter in waiters:
                    waiter.cancel()

    async def _run(self) -> None:
        logged_reason = ""
        while True:
            server, pause_s = self._pool.next()
            await asyncio.sleep(pause_s)
            try:
                session = await self._connect(server)
            except MicroError as error:
                self._failure = error
                self._first_attempt_failed.set()
                self._context.counters.add("broker_nats_dials_failed")
                # Log each reason once, not each attempt.
                if error.detail != logged_reason:
                    self._context.logger.info("no NATS server", extra={"reason": str(error)})
                    logged_reason = error.detail
                continue
            except Exception:
                self._context.counters.add("broker_nats_reconnect_failures")
                self._context.logger.exception("connecting to NATS failed")
                continue
            logged_reason = ""
            await session.lost.wait()
            self.session = None
            self._lost_at = self._context.clock.now()
            self._changed.clear()
            self._context.counters.add("broker_nats_connections_lost")
            self._context.logger.warning("NATS server lost", extra={"remote": server.url, "reason": session.reason})
            await session.abandon(session.reason)

    async def _connect(self, server: Server) -> Session:
        assert self._credentials is not None
        session = await open_session(server, self._credentials, self._options, self._context)
        try:
            async with asyncio.timeout(4 * self._options.answer_timeout_s):
                await self._prepare(session)
            if session.lost.is_set():
                raise Unreachable(f"{server.url} was lost while subscriptions were created: {session.reason}")
        except TimeoutError as error:
            await session.abandon("no response")
            raise Unreachable(f"nats: {server.url} did not accept the subscriptions in time") from error
        except BaseException as error:
            await session.abandon(str(error))
            raise
        self._pool.connected(server, session.discovered_servers() if self._options.discover else ())
        self._failure = None
        self.session = session
        self._changed.set()
        self._context.logger.info("NATS server connected", extra={"remote": server.url})
        return session
