"""Translate errors of the redis library into errors of the contract."""

from __future__ import annotations

from redis import exceptions as library

from micro_core.contract import Forbidden, InternalError, MicroError, Overloaded, Unauthorized, Unreachable

RIGHTS = "~micro:* &* +@read +@write +@pubsub +@connection +eval +evalsha +time"
"""Permissions that an ACL user needs (with the default prefix)."""

_LOGIN = "set redis.username and redis.password (or redis.password_file)"
_TEMPORARY = {
    "LOADING": "the server is still loading its data, wait",
    "BUSY": "a script is running for too long, see SLOWLOG",
    "MASTERDOWN": "the master is down, check the sentinels",
    "CLUSTERDOWN": "the cluster is down, see CLUSTER INFO",
    "TRYAGAIN": "the cluster is moving the keys, wait",
    "READONLY": "this server is a replica: use the address of the master or of the sentinels",
    "NOREPLICAS": "the server has too few replicas to accept writes",
    "MISCONF": "the server cannot write to its disk, see its log",
    "UNBLOCKED": "the server has become a replica, wait",
}

# The library removes the error code from the text if it has a class for it. Errors of scripts keep the code.
_CLASSES: dict[str, type[Exception]] = {
    "LOADING": library.BusyLoadingError,
    "MASTERDOWN": library.MasterDownError,
    "CLUSTERDOWN": library.ClusterDownError,
    "TRYAGAIN": library.TryAgainError,
    "READONLY": library.ReadOnlyError,
}


def to_contract_error(error: Exception, where: str) -> MicroError:
    """Return the contract error for an error of the library.

    `where` is the address of the server without password.
    """
    text = " ".join(str(error).split())[:300]
    if _contains(text, "WRONGPASS", "invalid password", "NOAUTH", "AUTH <password>", "Authentication required"):
        return Unauthorized(f"redis login failed: {text}", at=where, hint=_LOGIN)
    # Since version 7, servers report a command that is refused within a script as "ACL failure in script".
    if isinstance(error, library.NoPermissionError) or _contains(
        text, "NOPERM", "ACL failure", "can't run this command or subcommand", "can't access at least one of the keys"
    ):
        return Forbidden(f"redis user lacks a permission: {text}", at=where, hint=f"ACL SETUSER <user> {RIGHTS}")
    if isinstance(error, (library.AuthenticationError, library.AuthorizationError)):
        return Unauthorized(f"redis login failed: {text}", at=where, hint=_LOGIN)
    if isinstance(error, library.OutOfMemoryError) or _contains(text, "OOM command not allowed"):
        return Overloaded(
            "redis has no memory left for the record: maxmemory is reached",
            at=where,
            hint="raise maxmemory or delete other keys; existing records are still renewed",
        )
    if isinstance(error, library.MaxConnectionsError) or _contains(text, "max number of clients reached"):
        return Overloaded(f"redis accepts no more connections: {text}", at=where, hint="raise maxclients")
    for code, hint in _TEMPORARY.items():
        if _contains(text, code) or isinstance(error, _CLASSES.get(code, ())):
            return Unreachable(f"redis is temporarily unavailable: {text}", at=where, hint=hint)
    if isinstance(error, (library.TimeoutError, TimeoutError)):
        return Unreachable(
            "redis does not answer", at=where, hint="check that the server is running and not overloaded"
        )
    if isinstance(error, (library.ConnectionError, library.RedisClusterException, OSError)):
        return Unreachable(f"cannot reach redis: {text}", at=where, hint=_connection_hint(text))
    if isinstance(error, library.ResponseError):
        return InternalError(f"redis returned an error: {text}", at=where, hint="Redis 5 or newer is required")
    return InternalError(f"redis: {text or type(error).__name__}", at=where)


def _connection_hint(text: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "set redis.ca_file to the certificate authority of the server"
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return "the server does not use TLS on this port: use redis instead of rediss"
    if "No master found" in text:
        return "check the name of the master in redis.url, and that the sentinels report it as up"
    return "check that the server is running, and redis.url (rediss for TLS)"


def _contains(text: str, *phrases: str) -> bool:
    return any(phrase in text for phrase in phrases)


LIBRARY_ERRORS = (library.RedisError, library.RedisClusterException, OSError)
"""Exceptions raised by calls of the library; TimeoutError is an OSError."""
