"""Every error a user or a peer can meet, as one tree.

    MicroError                      500  anything below; also what an unknown code becomes
    ├── BadRequest                  400  the request is wrong: the field and the reason are named
    │   └── Malformed               400  bytes that do not follow the protocol
    ├── Unauthorized                401  the handshake or a credential failed
    ├── Forbidden                   403  known, but not allowed
    ├── NotFound                    404
    │   ├── ServiceNotFound         404  no instance of this service, here or on any route
    │   ├── EndpointNotFound        404  the service has no such endpoint
    │   └── RouteNotFound           404  the node knows no route to the service
    ├── DeadlineExceeded            408  the time the caller gave ran out
    ├── Conflict                    409  it exists already, or two things claim one name
    ├── TooLarge                    413  over a documented bound (`micro_core.wire.limits`)
    ├── Overloaded                  429  a bounded queue is full; nothing was started
    ├── Cancelled                   499  the caller went away
    ├── InternalError               500  the handler raised something else
    ├── Unreachable                 502  the next hop could not be reached; nothing was started
    │   ├── Closed                  502  this side closed the connection
    │   ├── Ended                   502  the other side closed the connection
    │   └── LinkLost                502  the connection broke
    ├── Draining                    503  the instance is stopping; nothing was started
    ├── LoopDetected                508  hop limit reached, or a router met its own id
    └── ConfigError                 900  local only: never sent by a peer
        ├── OptionError             901  unknown, missing or invalid option, with the nearest name
        ├── PluginMissing           902  not installed, with the `pip install` line
        ├── PluginBroken            903  installed, but cannot be loaded
        └── PluginAmbiguous         904  one word, several plugins

An error is made where the fault is: it says *what*, *at* which hop, and a *hint* of what to try. It crosses
hops unchanged, and both ends raise the same class.
"""

from __future__ import annotations

from typing import ClassVar

MAX_TEXT_CHARS = 2_000
"""Longest text of one field accepted from a peer: an error is a sentence, never a payload."""


class MicroError(Exception):
    """An error with a code, a place and a hint.

    `detail` is one sentence for people: what is wrong, with the value. `hint` is what to try, `at` the hop that made it
    (calls fill in their own where it is left out), and `id` names the kind for machines (`route-not-found`; a service
    may use ids of its own). The class decides `code`, which is HTTP-like, `status`, the short phrase of the code, and
    `retry_is_safe`. Shown to people it is `detail at AT (try: HINT)`.
    """

    code: ClassVar[int] = 500
    id: str = "micro-error"
    status: ClassVar[str] = "Internal Server Error"
    retry_is_safe: ClassVar[bool] = False
    """True when this class promises that no handler was started."""

    def __init__(self, detail: str, *, at: str = "", hint: str = "", id: str = "") -> None:  # noqa: A002 - wire name
        super().__init__(detail)
        self.detail = detail
        self.at = at
        self.hint = hint
        if id:
            self.id = id

    def __str__(self) -> str:
        parts = [self.detail]
        if self.at:
            parts.append(f"at {self.at}")
        text = " ".join(parts)
        return f"{text} (try: {self.hint})" if self.hint else text

    def to_wire(self) -> dict[str, str | int]:
        """Return the map that crosses the wire: id, code, detail, status, at, hint."""
        return {
            "id": self.id[:MAX_TEXT_CHARS],
            "code": self.code,
            "detail": self.detail[:MAX_TEXT_CHARS],
            "status": self.status,
            "at": self.at[:MAX_TEXT_CHARS],
            "hint": self.hint[:MAX_TEXT_CHARS],
        }


class BadRequest(MicroError):
    code = 400
    id = "bad-request"
    status = "Bad Request"


class Malformed(BadRequest):
    id = "malformed"


class Unauthorized(MicroError):
    code = 401
    id = "unauthorized"
    status = "Unauthorized"


class Forbidden(MicroError):
    code = 403
    id = "forbidden"
    status = "Forbidden"


class NotFound(MicroError):
    code = 404
    id = "not-found"
    status = "Not Found"


class ServiceNotFound(NotFound):
    id = "service-not-found"
    retry_is_safe = True


class EndpointNotFound(NotFound):
    id = "endpoint-not-found"


class RouteNotFound(NotFound):
    id = "route-not-found"
    retry_is_safe = True


class DeadlineExceeded(MicroError):
    code = 408
    id = "deadline-exceeded"
    status = "Request Timeout"


class Conflict(MicroError):
    code = 409
    id = "conflict"
    status = "Conflict"


class TooLarge(MicroError):
    code = 413
    id = "too-large"
    status = "Payload Too Large"


class Overloaded(MicroError):
    code = 429
    id = "overloaded"
    status = "Too Many Requests"
    retry_is_safe = True


class Cancelled(MicroError):
    code = 499
    id = "cancelled"
    status = "Client Closed Request"


class InternalError(MicroError):
    code = 500
    id = "internal-error"


class Unreachable(MicroError):
    code = 502
    id = "unreachable"
    status = "Bad Gateway"
    retry_is_safe = True


class Closed(Unreachable):
    """This side closed it."""

    id = "closed"
    retry_is_safe = False


class Ended(Unreachable):
    """The other side closed it."""

    id = "ended"
    retry_is_safe = False


class LinkLost(Unreachable):
    """It broke: whether the request was handled is not known."""

    id = "link-lost"
    retry_is_safe = False


class Draining(MicroError):
    code = 503
    id = "draining"
    status = "Service Unavailable"
    retry_is_safe = True


class LoopDetected(MicroError):
    code = 508
    id = "loop-detected"
    status = "Loop Detected"


class ConfigError(MicroError):
    code = 900
    id = "config-error"
    status = "Configuration Error"


class OptionError(ConfigError):
    code = 901
    id = "option-error"


class PluginMissing(ConfigError):
    code = 902
    id = "plugin-missing"


class PluginBroken(ConfigError):
    code = 903
    id = "plugin-broken"


class PluginAmbiguous(ConfigError):
    code = 904
    id = "plugin-ambiguous"


class RemoteError(MicroError):
    """An error with a code or id that this version has no class for; `code` is the peer's own."""

    def __init__(self, detail: str, *, code: int, status: str, at: str = "", hint: str = "", id: str = "") -> None:  # noqa: A002 - wire name
        super().__init__(detail, at=at, hint=hint, id=id)
        self.code = code  # type: ignore[misc]  # instance value shadows the class default on purpose
        self.status = status  # type: ignore[misc]


def _all_subclasses(root: type[MicroError]) -> list[type[MicroError]]:
    found: list[type[MicroError]] = []
    for child in root.__subclasses__():
        found.append(child)
        found.extend(_all_subclasses(child))
    return found


ERROR_CLASSES: dict[str, type[MicroError]] = {MicroError.id: MicroError}
for _class in _all_subclasses(MicroError):
    if _class is not RemoteError:
        ERROR_CLASSES[_class.id] = _class

CODE_CLASSES: dict[int, type[MicroError]] = {}
"""The most general class of each code."""
for _class in ERROR_CLASSES.values():
    if _class is not MicroError:
        CODE_CLASSES.setdefault(_class.code, _class)


def error_from_wire(value: object) -> MicroError:
    """Build the error that a peer sent: its own class by id, else the class of its code, else RemoteError.

    Never raises: whatever does not fit becomes a `Malformed` that says so. Codes of ConfigError (900 and up)
    are local and are not believed from a peer.
    """
    if not isinstance(value, dict):
        return Malformed("the peer sent an error that is not a map")

    def text(key: str) -> str:
        found = value.get(key, "")
        return found[:MAX_TEXT_CHARS] if isinstance(found, str) else ""

    code = value.get("code")
    if not isinstance(code, int) or isinstance(code, bool) or not 400 <= code < 600:
        code = 500
    known = ERROR_CLASSES.get(text("id"))
    if known is None or known.code != code:
        known = CODE_CLASSES.get(code)
    detail, at, hint = text("detail") or "no detail", text("at"), text("hint")
    if known is None:
        return RemoteError(detail, code=code, status=text("status") or "Error", at=at, hint=hint, id=text("id"))
    return known(detail, at=at, hint=hint, id=text("id"))
