"""Path selection: race the paths to one node, prefer the first, and return to a preferred path when it works again.

A node may be reachable over several drivers, which this node tries in its order of preference (e.g. QUIC, then TLS).
As in Happy Eyeballs (RFC 8305), the preferred path gets a head start, the connection attempt delay. Then the next path
is tried as well, and the first link that is established wins. While a link uses another than the preferred path, the
preferred ones are probed at growing intervals.

Pure: `handle(event, now) -> effects`, `wake(now)` and `wake_at`, in seconds of any monotonic clock.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from micro_core.contract.clock import Random
from micro_core.contract.errors import BadRequest, MicroError, Unauthorized, Unreachable
from micro_core.contract.names import PATH_SEPARATOR, split_host_port
from micro_core.tunnel.backoff import Backoff

NO_DRIVER_ERROR_ID = "no-tunnel-driver"
"""Id of the error for an address that no driver in use supports. Another attempt cannot help."""

PREFERRED_PATH_REASON = "first choice"
"""The reason given for a link over the preferred of several paths."""

MAX_PATHS = 8
"""Maximum number of paths to one node; the rest of a longer list is ignored."""

STABLE_AFTER_S = 60.0
"""A preferred path that carried a link for this long counts as stable: probing starts with the shortest interval again."""


def paths_to(address: str, schemes: Sequence[str]) -> tuple[str, ...]:
    """Return the addresses to dial for `address`, preferred first, each with the scheme of a driver in use.

    `schemes` are the schemes of the drivers in use, in order of preference. Several addresses joined by `|` are used as
    they are. An address without a scheme stands for every driver at this host and port. An address with a scheme stands for
    this driver and those after it, at the same host and port (UDP and TCP ports are independent, so both drivers
    can use the same number).

    Raises Unreachable when no driver in use supports any of the addresses.
    """
    listed = [item.strip() for item in address.split(PATH_SEPARATOR) if item.strip()]
    if len(listed) == 1:
        found = _expand(listed[0], schemes)
    else:
        with_scheme = [item if "://" in item else f"{schemes[0]}://{item}" for item in listed if schemes]
        found = [item for scheme in schemes for item in with_scheme if item.startswith(f"{scheme}://")]
    if not found:
        in_use = ", ".join(schemes) or "none"
        raise Unreachable(
            f"no tunnel driver supports {address:.300}",
            hint=f"drivers in use: {in_use}; select one with --plugins, as in --plugins quic",
            id=NO_DRIVER_ERROR_ID,
        )
    return tuple(dict.fromkeys(found))[:MAX_PATHS]


def _expand(address: str, schemes: Sequence[str]) -> list[str]:
    scheme_in_address, separator, bare = address.partition("://")
    if not separator:
        return [f"{scheme}://{address}" for scheme in schemes]
    if scheme_in_address not in schemes:
        return []
    index = schemes.index(scheme_in_address)
    return [f"{scheme}://{bare}" for scheme in (schemes[index:] if _is_host_port(bare) else [scheme_in_address])]


def _is_host_port(bare: str) -> bool:
    """Return whether other drivers could use the same address; a name within one process is valid for its driver only."""
    try:
        _, port = split_host_port(bare)
    except BadRequest:
        return False
    return port > 0


# ------------------------------------------------------------------------------------ events


@dataclass(frozen=True, slots=True)
class Start:
    """Establish a link now."""


@dataclass(frozen=True, slots=True)
class AttemptSucceeded:
    """The attempt on this path established a link."""

    path: int


@dataclass(frozen=True, slots=True)
class LinkedElsewhere:
    """The node is linked by other means: it dialled this node, or another of its addresses was dialled."""


@dataclass(frozen=True, slots=True)
class AttemptFailed:
    """The attempt on this path failed."""

    path: int
    error: MicroError


@dataclass(frozen=True, slots=True)
class LinkEnded:
    """The node is no longer linked."""


@dataclass(frozen=True, slots=True)
class ReportedUp:
    """Other nodes report a link to the node, so dialling it now is better than waiting for the end of the pause."""


PathEvent = Start | AttemptSucceeded | LinkedElsewhere | AttemptFailed | LinkEnded | ReportedUp


# ------------------------------------------------------------------------------------ effects


@dataclass(frozen=True, slots=True)
class StartAttempt:
    """Dial this path; answer with AttemptSucceeded, LinkedElsewhere or AttemptFailed."""

    path: int
    reason: str
    """Reason for trying this path, for display. Empty if there is only one path."""


@dataclass(frozen=True, slots=True)
class CancelAttempt:
    """Cancel the attempt on this path. No answer is expected."""

    path: int


@dataclass(frozen=True, slots=True)
class PathChanged:
    """The link uses another path than the previous link did."""

    path: int
    reason: str


@dataclass(frozen=True, slots=True)
class AllPathsFailed:
    """Every path failed. The next race starts by itself, at `wake_at`."""

    error: MicroError


PathEffect = StartAttempt | CancelAttempt | PathChanged | AllPathsFailed


class Phase(enum.Enum):
    """The state of a `PathSelector`."""

    IDLE = "idle"
    """Before `Start`."""
    RACING = "racing"
    """There is no link; attempts are in progress on one or more paths."""
    LINKED = "linked"
    """A link is established by an attempt. If it does not use the preferred path, a probe starts at `wake_at`."""
    PROBING = "probing"
    """A link is established, and attempts on preferred paths are in progress."""
    LINKED_ELSEWHERE = "linked elsewhere"
    """A link is established that this selector did not ask for and does not look after."""
    WAITING = "waiting"
    """There is no link; the next race starts at `wake_at`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PathOptions:
    """Timing of connection attempts, in seconds."""

    attempt_delay_s: float = 0.4
    """Head start of a path over the next one: the connection attempt delay of RFC 8305. QUIC and the nodes' handshake
    take 2.5 round trips, so with a round-trip time of up to 160 ms no second attempt is made; and TLS has 0.6 s left to
    establish a link within one second."""

    probe_initial_s: float = 3.0
    probe_max_s: float = 60.0
    """Bounds of the interval between two probes of the preferred paths while a link uses another path."""

    redial_initial_s: float = 0.2
    redial_max_s: float = 5.0
    """Bounds of the pause between two races. Even after a long partition, the nodes are linked a few seconds after its end."""

    redial_reported_min_s: float = 1.0
    """Minimum time between two races when a race starts because other nodes report the node as up: they may be wrong."""

    redial_refused_s: float = 30.0
    """Pause after the peer refused the link: another network, another token, or the node dialled itself."""


class PathSelector:
    """Selects the path over which one node is linked.

    Invariant: `attempting` holds the paths with an attempt in progress, at most one attempt per path.
    """

    def __init__(self, paths: Sequence[str], options: PathOptions, random: Random) -> None:
        self.paths = tuple(paths)
        self.phase = Phase.IDLE
        self.current: int | None = None
        """The path of the established link, in the phases LINKED and PROBING."""
        self.attempting: set[int] = set()
        self._options = options
        self._redial = Backoff(random=random, initial_s=options.redial_initial_s, max_s=options.redial_max_s)
        self._probe = Backoff(random=random, initial_s=options.probe_initial_s, max_s=options.probe_max_s)
        self._next = self._end = 0
        """In a race or a probe: the next path to try, and the first path that is not to be tried."""
        self._errors: dict[int, MicroError] = {}
        self._wake_at: float | None = None
        self._raced_at = 0.0
        self._is_reported_up = False
        """Other nodes reported the node as up since the race started: it may have started after it was dialled."""
        self._is_refused = False
        self._linked_at = 0.0
        self._last_path = 0
        """The path of the previous link."""

    @property
    def wake_at(self) -> float | None:
        """When `wake` must be called next, or None."""
        return self._wake_at

    def wake(self, now: float) -> list[PathEffect]:
        """Start the next race, probe or attempt. Call this at `wake_at`."""
        if self._wake_at is None or now < self._wake_at:
            return []
        self._wake_at = None
        match self.phase:
            case Phase.WAITING:
                return self._race(now)
            case Phase.LINKED:
                assert self.current is not None
                self.phase = Phase.PROBING
                self._errors = {}
                self._next, self._end = 0, self.current
                return self._attempt_next(now)
            case Phase.RACING | Phase.PROBING if self._next < self._end:
                return self._attempt_next(now)
            case _:
                return []

    def handle(self, event: PathEvent, now: float) -> list[PathEffect]:
        """Process an event and return the effects to carry out, in order."""
        match event:
            case Start():
                return self._race(now)
            case AttemptSucceeded(path):
                return self._attempt_succeeded(path, now)
            case LinkedElsewhere():
                self._wake_at, self.current = None, None
                self.phase = Phase.LINKED_ELSEWHERE
                return self._cancel_all()
            case AttemptFailed(path, error):
                return self._attempt_failed(path, error, now)
            case LinkEnded():
                return self._link_ended(now)
            case ReportedUp():
                self._is_reported_up = True
                self._shorten_pause(now)
                return self.wake(now)

    # --------------------------------------------------------------- internals

    def _shorten_pause(self, now: float) -> None:
        """End a pause early when other nodes report the node as up, unless it refused the link: it would again."""
        if self._is_reported_up and self.phase is Phase.WAITING and self._wake_at is not None and not self._is_refused:
            # The backoff is not reset: if the next race fails as well, the pauses continue to grow.
            self._wake_at = min(self._wake_at, max(now, self._raced_at + self._options.redial_reported_min_s))

    def _race(self, now: float) -> list[PathEffect]:
        self.phase, self.current, self._raced_at = Phase.RACING, None, now
        self._is_reported_up = self._is_refused = False
        self._errors = {}
        self._next, self._end = 0, len(self.paths)
        return [*self._cancel_all(), *self._attempt_next(now)]

    def _attempt_next(self, now: float) -> list[PathEffect]:
        path, self._next = self._next, self._next + 1
        self.attempting.add(path)
        self._wake_at = now + self._options.attempt_delay_s if self._next < self._end else None
        return [StartAttempt(path, self._reason(path))]

    def _attempt_succeeded(self, path: int, now: float) -> list[PathEffect]:
        was_probing = self.phase is Phase.PROBING
        self.attempting.discard(path)
        effects = self._cancel_all()
        self.phase, self.current, self._linked_at = Phase.LINKED, path, now
        self._redial.reset()
        self._wake_at = now + self._probe.next_s() if path > 0 else None
        if path != self._last_path:
            reason = f"{_scheme(self.paths[path])} answers again" if was_probing else self._reason(path)
            effects.append(PathChanged(path, reason))
        self._last_path = path
        return effects

    def _attempt_failed(self, path: int, error: MicroError, now: float) -> list[PathEffect]:
        if path not in self.attempting:
            # The attempt failed while it was being cancelled.
            return []
        self.attempting.discard(path)
        self._errors[path] = error
        if self._next < self._end:
            return self._attempt_next(now)
        if self.attempting:
            return []
        if self.phase is Phase.PROBING:
            self.phase = Phase.LINKED
            self._wake_at = now + self._probe.next_s()
            return []
        self.phase = Phase.WAITING
        failure = self._failure()
        self._is_refused = isinstance(failure, Unauthorized)
        self._wake_at = now + (self._options.redial_refused_s if self._is_refused else self._redial.next_s())
        self._shorten_pause(now)
        return [AllPathsFailed(failure)]

    def _link_ended(self, now: float) -> list[PathEffect]:
        if self.phase not in (Phase.LINKED, Phase.PROBING, Phase.LINKED_ELSEWHERE):
            return []
        if self.current == 0 and now - self._linked_at >= STABLE_AFTER_S:
            self._probe.reset()
        self.phase, self.current = Phase.WAITING, None
        self._wake_at = now + self._redial.next_s()
        return self._cancel_all()

    def _cancel_all(self) -> list[PathEffect]:
        effects: list[PathEffect] = [CancelAttempt(path) for path in sorted(self.attempting)]
        self.attempting.clear()
        return effects

    def _reason(self, path: int) -> str:
        """Return why `path` is tried, and not one before it."""
        if len(self.paths) == 1:
            return ""
        if self.phase is Phase.PROBING:
            return f"{_scheme(self.paths[path])} answers again"
        if path == 0:
            return PREFERRED_PATH_REASON
        return "; ".join(self._rejection_reason(preferred) for preferred in range(path))

    def _rejection_reason(self, path: int) -> str:
        scheme, error = _scheme(self.paths[path]), self._errors.get(path)
        if error is None:
            return f"{scheme} did not answer within {self._options.attempt_delay_s:.3g} s"
        return f"{scheme} failed: {error.detail}"

    def _failure(self) -> MicroError:
        """Return one error for all paths. A refusal by the peer takes precedence over paths that did not reach it."""
        refusals = [error for error in self._errors.values() if isinstance(error, Unauthorized)]
        if refusals:
            return refusals[0]
        errors = [self._errors[path] for path in sorted(self._errors)]
        if len(errors) == 1:
            return errors[0]
        details: Mapping[str, None] = dict.fromkeys(error.detail for error in errors)
        hints = [error.hint for error in errors if error.hint]
        return Unreachable("; ".join(details), at=errors[0].at, hint=hints[-1] if hints else "")


def _scheme(path: str) -> str:
    return path.partition("://")[0]
