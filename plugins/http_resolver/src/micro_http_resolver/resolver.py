"""The resolver: one document on the web, kept as long as its server allows."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from urllib.parse import quote

from micro_core.contract import Candidate, DriverContext, Malformed, OptionError, Unreachable
from micro_http_resolver.document import parse_nodes
from micro_http_resolver.fetching import Policy, fetch, parse_url
from micro_http_resolver.options import HttpOptions

MIN_TTL_S = 1.0
"""A server that forbids caching is asked once a second at most."""

MAX_NETWORKS = 64
"""Networks whose documents are kept."""

NETWORK_MARK = "{network}"


@dataclass(frozen=True, slots=True)
class _Kept:
    candidates: tuple[Candidate, ...]
    expires_at: float


class HttpResolver:
    """The resolver role over HTTP."""

    def __init__(self, options: HttpOptions, context: DriverContext) -> None:
        if not options.url:
            raise OptionError("http: url is not set", hint="as in url=https://example.org/nodes.json")
        try:
            parse_url(options.url.replace(NETWORK_MARK, "x"))
        except Malformed as error:
            raise OptionError(error.detail, hint=error.hint) from error
        if not options.token.isascii() or not options.token.isprintable():
            raise OptionError("http: token holds characters that no header can carry")
        self._options = options
        self._context = context
        self._policy: Policy | None = None
        self._kept: dict[str, _Kept] = {}
        self._turns: dict[str, asyncio.Lock] = {}

    async def start(self) -> None:
        """Load the certificate authorities. Raises OptionError when `ca_file` cannot be read."""
        try:
            tls = ssl.create_default_context(cafile=self._options.ca_file or None)
        except OSError as error:
            raise OptionError(f"http: ca_file {self._options.ca_file}: {error}", hint="a PEM file") from error
        self._policy = Policy(
            token=self._options.token,
            max_bytes=self._options.max_bytes,
            max_redirects=self._options.max_redirects,
            allow_private=self._options.allow_private,
            tls=tls,
        )

    async def close(self) -> None:
        """Forget the documents. Safe to call twice."""
        self._policy = None
        self._kept.clear()

    async def resolve(self, network: str) -> list[Candidate]:
        """See the contract. Also raises Malformed, TooLarge and Forbidden (a redirect into a private network)."""
        url = self._options.url.replace(NETWORK_MARK, quote(network, safe=""))
        turn = self._turns.get(url)
        if turn is None:
            if len(self._turns) >= MAX_NETWORKS:
                self._turns.clear()
                self._kept.clear()
            turn = self._turns[url] = asyncio.Lock()
        # Callers that ask together share one answer.
        async with turn:
            now = self._context.clock.now()
            kept = self._kept.get(url)
            if kept is None or kept.expires_at <= now:
                kept = self._kept[url] = await self._fetch(url)
        left_s = max(MIN_TTL_S, kept.expires_at - self._context.clock.now())
        return [
            Candidate(address=one.address, priority=one.priority, weight=one.weight, ttl_s=left_s)
            for one in kept.candidates
        ]

    async def _fetch(self, url: str) -> _Kept:
        if self._policy is None:
            raise Unreachable("http: the resolver is not started", hint="await start() first")
        try:
            async with asyncio.timeout(self._options.timeout_s):
                document = await fetch(url, self._policy)
        except TimeoutError as error:
            raise Unreachable(
                f"http: no document within {self._options.timeout_s} s", hint="check url, or raise timeout_s"
            ) from error
        ttl_s = max(MIN_TTL_S, self._options.ttl_s if document.max_age_s is None else document.max_age_s)
        candidates = parse_nodes(document.body, ttl_s=ttl_s)
        return _Kept(tuple(candidates), self._context.clock.now() + ttl_s)
