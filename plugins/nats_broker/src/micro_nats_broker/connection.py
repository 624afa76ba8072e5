"""Keeps one session with the cluster: dials, prepares, waits for the end, begins anew with growing pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from micro_core.contract import Closed, ConfigError, DriverContext, MicroError, Unauthorized, Unreachable
from micro_nats_broker.credentials import Credentials
from micro_nats_broker.ending import end
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.servers import Server, ServerPool
from micro_nats_broker.session import Session, open_session

FAILOVER_S = 0.5
"""How long after a loss a publisher waits for the next server of the cluster, before it is told that there is none."""


class Connection:
    """`session` is the present one, prepared; None while there is none."""

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
        self._away_since = 0.0
        self._failure: MicroError | None = None
        self._has_failed_once = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Begin. Raises Unauthorized or ConfigError when a server says that it will not do; a server that is not
        there is waited for in the background.
        """
        self._credentials = Credentials(self._options)
        self._away_since = self._context.clock.now()
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        wait_s = self._options.subscribe_timeout_s
        try:
            async with asyncio.timeout(wait_s):
                await self._until_known()
        except TimeoutError:
            self._context.counters.add("broker_nats_started_without_server")
            self._context.logger.warning(
                "no NATS server yet; going on without", extra={"reason": str(self._failure or "no answer")}
            )
        failure = self._failure
        if self.session is None and isinstance(failure, (Unauthorized, ConfigError)):
            await self.close()
            raise failure

    async def close(self) -> None:
        """Safe to call twice."""
        self._is_closed = True
        self._changed.set()
        await end(self._keeper)
        session, self.session = self.session, None
        if session is not None:
            await session.abandon("closed")

    async def usable(self, patience_s: float = 0.0) -> Session:
        """The session; a short wait where the last one was lost just now, `patience_s` at least.

        Raises Unreachable, Closed.
        """
        if self.session is None:
            left_s = max(patience_s, self._away_since + FAILOVER_S - self._context.clock.now())
            if left_s > 0:
                try:
                    async with asyncio.timeout(left_s):
                        return await self.next()
                except TimeoutError:
                    pass
        self._check_open()
        if self.session is None:
            reason = f": {self._failure.detail}" if self._failure is not None else ""
            raise Unreachable(f"no NATS server is connected{reason}", hint="publish again later; nothing was kept")
        return self.session

    async def next(self) -> Session:
        """The session, waited for without end. Raises Closed."""
        while self.session is None:
            self._check_open()
            await self._changed.wait()
        return self.session

    def _check_open(self) -> None:
        if self._is_closed:
            raise Closed("this broker is closed")
        if self._keeper is None:
            raise Closed("this broker is not started", hint="await start() first")

    async def _until_known(self) -> None:
        """Return when there is a session, or a failure that time does not mend."""
        while self.session is None and not isinstance(self._failure, (Unauthorized, ConfigError)):
            self._has_failed_once.clear()
            waits = [asyncio.ensure_future(event.wait()) for event in (self._changed, self._has_failed_once)]
            try:
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for wait in waits:
                    wait.cancel()

    async def _keep(self) -> None:
        said = ""
        while True:
            server, pause_s = self._pool.next()
            await asyncio.sleep(pause_s)
            try:
                session = await self._connect(server)
            except MicroError as error:
                self._failure = error
                self._has_failed_once.set()
                self._context.counters.add("broker_nats_dials_failed")
                # Once for each reason, not once for each try.
                if error.detail != said:
                    self._context.logger.info("no NATS server", extra={"reason": str(error)})
                    said = error.detail
                continue
            except Exception:
                self._context.counters.add("broker_keeper_failures")
                self._context.logger.exception("the connection to NATS failed")
                continue
            said = ""
            await session.lost.wait()
            self.session = None
            self._away_since = self._context.clock.now()
            self._changed.clear()
            self._context.counters.add("broker_nats_connections_lost")
            self._context.logger.warning(
                "the NATS server was lost", extra={"remote": server.url, "reason": session.reason}
            )
            await session.abandon(session.reason)

    async def _connect(self, server: Server) -> Session:
        assert self._credentials is not None
        session = await open_session(server, self._credentials, self._options, self._context)
        try:
            async with asyncio.timeout(4 * self._options.answer_timeout_s):
                await self._prepare(session)
            if session.lost.is_set():
                raise Unreachable(f"{server.url} was lost while subscriptions were made: {session.reason}")
        except TimeoutError as error:
            await session.abandon("it did not answer")
            raise Unreachable(f"nats: {server.url} is too slow to take the subscriptions") from error
        except BaseException as error:
            await session.abandon(str(error))
            raise
        self._pool.connected(server, session.others() if self._options.discover else ())
        self._failure = None
        self.session = session
        self._changed.set()
        self._context.logger.info("NATS server connected", extra={"remote": server.url})
        return session
