"""The resolver: fetches a document over HTTP and caches it for as long as the server allows."""

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
"""Shortest time in seconds for which a document is cached, even if the server forbids caching."""

MAX_NETWORKS = 64
"""Maximum number of networks with a cached document."""

NETWORK_PLACEHOLDER = "{network}"
"""Text in the URL that is replaced by the name of the network."""


@dataclass(frozen=True, slots=True)
class _CachedDocument:
    candidates: tuple[Candidate, ...]
    expires_at: float


class HttpResolver:
    """Implements `micro_core.contract.Resolver` over HTTP. Raises OptionError for invalid options."""

    def __init__(self, options: HttpOptions, context: DriverContext) -> None:
        if not options.url:
            raise OptionError("http: url is not set", hint="e.g. url=https://example.org/nodes.json")
        try:
            parse_url(options.url.replace(NETWORK_PLACEHOLDER, "x"))
        except Malformed as error:
            raise OptionError(error.detail, hint=error.hint) from error
        if not options.token.isascii() or not options.token.isprintable():
            raise OptionError("http: token contains characters that are not allowed in a header")
        self._options = options
        self._context = context
        self._policy: Policy | None = None
        self._cache: dict[str, _CachedDocument] = {}
        self._locks: dict[str, asyncio.Lock] = {}

    async def start(self) -> None:
        """Load the certificate authorities. Raises OptionError if `ca_file` cannot be read."""
        try:
            tls = ssl.create_default_context(cafile=self._options.ca_file or None)
        except OSError as error:
            raise OptionError(
                f"http: cannot read ca_file {self._options.ca_file}: {error}", hint="use a PEM file"
            ) from error
        self._policy = Policy(
            token=self._options.token,
            max_bytes=self._options.max_bytes,
            max_redirects=self._options.max_redirects,
            allow_private=self._options.allow_private,
            tls=tls,
        )

    async def close(self) -> None:
        """Clear the cache. Safe to call twice."""
        self._policy = None
        self._cache.clear()

    async def resolve(self, network: str) -> list[Candidate]:
        """Return the nodes of `network`, lowest priority first. Concurrent callers share one request.

        Raises Unreachable if there is no answer in time, Malformed for an invalid document, TooLarge for a document over
        `max_bytes`, and Forbidden for a redirect into a private network.
        """
        url = self._options.url.replace(NETWORK_PLACEHOLDER, quote(network, safe=""))
        lock = self._locks.get(url)
        if lock is None:
            if len(self._locks) >= MAX_NETWORKS:
                self._locks.clear()
                self._cache.clear()
            lock = self._locks[url] = asyncio.Lock()
        # Concurrent callers wait for one request.
        async with lock:
            now = self._context.clock.now()
            cached = self._cache.get(url)
            if cached is None or cached.expires_at <= now:
                cached = self._cache[url] = await self._fetch(url)
        left_s = max(MIN_TTL_S, cached.expires_at - self._context.clock.now())
        return [
            Candidate(address=candidate.address, priority=candidate.priority, weight=candidate.weight, ttl_s=left_s)
            for candidate in cached.candidates
        ]

    async def _fetch(self, url: str) -> _CachedDocument:
        if self._policy is None:
            raise Unreachable("http: the resolver is not started", hint="await start() first")
        try:
            async with asyncio.timeout(self._options.timeout_s):
                document = await fetch(url, self._policy)
        except TimeoutError as error:
            raise Unreachable(
                f"http: no response within {self._options.timeout_s} s", hint="check url, or raise timeout_s"
            ) from error
        ttl_s = max(MIN_TTL_S, self._options.ttl_s if document.max_age_s is None else document.max_age_s)
        candidates = parse_nodes(document.body, ttl_s=ttl_s)
        return _CachedDocument(tuple(candidates), self._context.clock.now() + ttl_s)
