"""The exceptions of micro as one tree, with their codes.

    MicroError                      500
    ├── BadRequest                  400
    │   └── Malformed               400
    ├── Unauthorized                401
    ├── Forbidden                   403
    ├── NotFound                    404
    │   ├── ServiceNotFound         404
    │   ├── EndpointNotFound        404
    │   └── RouteNotFound           404
    ├── DeadlineExceeded            408
    ├── Conflict                    409
    ├── TooLarge                    413
    ├── Overloaded                  429
    ├── Cancelled                   499
    ├── InternalError               500
    ├── Unreachable                 502
    │   ├── Closed                  502
    │   ├── Ended                   502
    │   └── LinkLost                502
    ├── Draining                    503
    ├── LoopDetected                508
    └── ConfigError                 900
        ├── OptionError             901
        ├── PluginMissing           902
        ├── PluginBroken            903
        └── PluginAmbiguous         904

An error is created at the hop where the fault is. It states what failed, at which hop, and what to try. Hops forward it
unchanged, and both ends of a call raise the same class. Errors with a code of 900 or more are local to a process and are
never sent.
"""

from __future__ import annotations

from typing import ClassVar

MAX_TEXT_CHARS = 2_000
"""Maximum length of each text field of an error, sent or received. Longer texts are cut off."""


class MicroError(Exception):
    """The base class of all errors; also the class of an error whose kind is not known.

    `str(error)` is `DETAIL at AT (hint: HINT)`; empty fields are left out.

    Args:
        detail: The failure and its reason, in one sentence without a final period, including the invalid value.
        at: The hop that created the error, or the source of an invalid setting (`micro.toml:14`). If it is empty, the
            server that sends the error fills in its own name.
        hint: An action that the user can try.
        id: The kind of error for programs, e.g. `route-not-found`. The default is the id of the class; a service may
            define ids of its own.
    """

    code: ClassVar[int] = 500
    """Number of the kind of error, similar to an HTTP status code."""
    id: str = "micro-error"
    """The kind of error for programs."""
    status: ClassVar[str] = "Internal Server Error"
    """Short phrase for the code."""
    retry_is_safe: ClassVar[bool] = False
    """True if this class guarantees that no handler was started, so that sending the call again is safe."""

    def __init__(self, detail: str, *, at: str = "", hint: str = "", id: str = "") -> None:  # noqa: A002 - wire name
        super().__init__(detail)
        self.detail = detail
        self.at = at
        self.hint = hint
        if id:
            self.id = id

    def __str__(self) -> str:
        text = f"{self.detail} at {self.at}" if self.at else self.detail
        return f"{text} (hint: {self.hint})" if self.hint else text

    def to_wire(self) -> dict[str, str | int]:
        """Return the fields that are sent to a peer: id, code, detail, status, at, hint."""
        return {
            "id": self.id[:MAX_TEXT_CHARS],
            "code": self.code,
            "detail": self.detail[:MAX_TEXT_CHARS],
            "status": self.status,
            "at": self.at[:MAX_TEXT_CHARS],
            "hint": self.hint[:MAX_TEXT_CHARS],
        }


class BadRequest(MicroError):
    """The request is invalid; the detail names the field and the reason."""

    code = 400
    id = "bad-request"
    status = "Bad Request"


class Malformed(BadRequest):
    """Received bytes do not follow the protocol or the format."""

    id = "malformed"


class Unauthorized(MicroError):
    """A credential is missing or wrong, or the handshake of a link failed."""

    code = 401
    id = "unauthorized"
    status = "Unauthorized"


class Forbidden(MicroError):
    """The caller is authenticated but not permitted to do this."""

    code = 403
    id = "forbidden"
    status = "Forbidden"


class NotFound(MicroError):
    """The requested object does not exist."""

    code = 404
    id = "not-found"
    status = "Not Found"


class ServiceNotFound(NotFound):
    """The service has no instance on this site or on any route. No handler was started."""

    id = "service-not-found"
    retry_is_safe = True


class EndpointNotFound(NotFound):
    """The service exists but does not have this endpoint."""

    id = "endpoint-not-found"


class RouteNotFound(NotFound):
    """The node has no route to the service. No handler was started."""

    id = "route-not-found"
    retry_is_safe = True


class DeadlineExceeded(MicroError):
    """The deadline of the caller passed before the call was completed."""

    code = 408
    id = "deadline-exceeded"
    status = "Request Timeout"


class Conflict(MicroError):
    """The object exists already, or the name or address is in use."""

    code = 409
    id = "conflict"
    status = "Conflict"


class TooLarge(MicroError):
    """A message, record or other value exceeds a documented limit (`micro_core.wire.limits`)."""

    code = 413
    id = "too-large"
    status = "Payload Too Large"


class Overloaded(MicroError):
    """A bounded queue or a limit on concurrency is exhausted. No handler was started."""

    code = 429
    id = "overloaded"
    status = "Too Many Requests"
    retry_is_safe = True


class Cancelled(MicroError):
    """The caller cancelled the call or disconnected."""

    code = 499
    id = "cancelled"
    status = "Client Closed Request"


class InternalError(MicroError):
    """The handler of a service raised an exception that is not a MicroError."""

    code = 500
    id = "internal-error"


class Unreachable(MicroError):
    """The next hop or a back end could not be reached. No handler was started."""

    code = 502
    id = "unreachable"
    status = "Bad Gateway"
    retry_is_safe = True


class Closed(Unreachable):
    """This side closed the connection. A request in progress may have been handled."""

    id = "closed"
    retry_is_safe = False


class Ended(Unreachable):
    """The other side closed the connection in an orderly way. A request in progress may have been handled."""

    id = "ended"
    retry_is_safe = False


class LinkLost(Unreachable):
    """The connection failed. It is not known whether a request in progress was handled."""

    id = "link-lost"
    retry_is_safe = False


class Draining(MicroError):
    """The instance is shutting down and accepts no more calls. No handler was started."""

    code = 503
    id = "draining"
    status = "Service Unavailable"
    retry_is_safe = True


class LoopDetected(MicroError):
    """The hop limit was reached, or a router received a request that it had forwarded before."""

    code = 508
    id = "loop-detected"
    status = "Loop Detected"


class ConfigError(MicroError):
    """The configuration of this process is invalid. Never sent to a peer."""

    code = 900
    id = "config-error"
    status = "Configuration Error"


class OptionError(ConfigError):
    """A setting or an option of a plugin is unknown, missing or invalid."""

    code = 901
    id = "option-error"


class PluginMissing(ConfigError):
    """A plugin is not installed, or no plugin has this name; the hint contains the `pip install` command if known."""

    code = 902
    id = "plugin-missing"


class PluginBroken(ConfigError):
    """A plugin is installed but cannot be imported or does not follow the contract."""

    code = 903
    id = "plugin-broken"


class PluginAmbiguous(ConfigError):
    """Several installed plugins have this name."""

    code = 904
    id = "plugin-ambiguous"


class RemoteError(MicroError):
    """An error from a peer with a code for which this version has no class; `code` is the code that the peer sent."""

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
"""The most general class for each code."""
for _class in ERROR_CLASSES.values():
    if _class is not MicroError:
        CODE_CLASSES.setdefault(_class.code, _class)


def error_from_wire(value: object) -> MicroError:
    """Build the error that a peer sent, from the decoded content of an ERROR frame.

    The class is that of the id, otherwise the most general class of the code, otherwise RemoteError. Never raises: a value
    that is not a map becomes `Malformed`, and an invalid code becomes 500. The codes of ConfigError (900 and above) are local, so
    they are invalid here.
    """
    if not isinstance(value, dict):
        return Malformed("the peer sent an error that is not a map")

    def text(key: str) -> str:
        found = value.get(key, "")
        return found[:MAX_TEXT_CHARS] if isinstance(found, str) else ""

    code = value.get("code")
    if not isinstance(code, int) or isinstance(code, bool) or not 400 <= code < 600:
        code = 500
    error_class = ERROR_CLASSES.get(text("id"))
    if error_class is None or error_class.code != code:
        error_class = CODE_CLASSES.get(code)
    detail, at, hint = text("detail") or "no detail", text("at"), text("hint")
    if error_class is None:
        return RemoteError(detail, code=code, status=text("status") or "Error", at=at, hint=hint, id=text("id"))
    return error_class(detail, at=at, hint=hint, id=text("id"))
