"""The errors of the redis library as errors of the contract: what happened, where, what to try."""

from __future__ import annotations

from redis import exceptions as library

from micro_core.contract import Forbidden, InternalError, MicroError, Overloaded, Unauthorized, Unreachable

RIGHTS = "~micro:* &* +@read +@write +@pubsub +@connection +eval +evalsha +time"
"""What an ACL user needs (with the default prefix)."""

_LOGIN = "set redis.username and redis.password (or redis.password_file)"
_TEMPORARY = {
    "LOADING": "it is still reading its data; wait",
    "BUSY": "a script keeps it busy; look at SLOWLOG",
    "MASTERDOWN": "the master is down; look at the sentinels",
    "CLUSTERDOWN": "the cluster is down; look at CLUSTER INFO",
    "TRYAGAIN": "the cluster is moving the keys; wait",
    "READONLY": "this server is a replica: give the master's address, or the sentinels'",
    "NOREPLICAS": "it has too few replicas to accept writes",
    "MISCONF": "it cannot write to its disk and refuses changes; look at its log",
    "UNBLOCKED": "it became a replica; wait",
}

# The library takes the word off the text where it has a class for it; inside a script's error the word stays.
_CLASSES: dict[str, type[Exception]] = {
    "LOADING": library.BusyLoadingError,
    "MASTERDOWN": library.MasterDownError,
    "CLUSTERDOWN": library.ClusterDownError,
    "TRYAGAIN": library.TryAgainError,
    "READONLY": library.ReadOnlyError,
}


def as_failure(error: Exception, where: str) -> MicroError:
    """The error of the contract for what the library raised; `where` is the server's address, without password."""
    text = " ".join(str(error).split())[:300]
    if _says(text, "WRONGPASS", "invalid password", "NOAUTH", "AUTH <password>", "Authentication required"):
        return Unauthorized(f"redis refuses the login: {text}", at=where, hint=_LOGIN)
    if isinstance(error, library.NoPermissionError) or _says(
        text, "NOPERM", "can't run this command or subcommand", "can't access at least one of the keys"
    ):
        return Forbidden(f"redis forbids it to this user: {text}", at=where, hint=f"ACL SETUSER <user> {RIGHTS}")
    if isinstance(error, (library.AuthenticationError, library.AuthorizationError)):
        return Unauthorized(f"redis refuses the login: {text}", at=where, hint=_LOGIN)
    if isinstance(error, library.OutOfMemoryError) or _says(text, "OOM command not allowed"):
        return Overloaded(
            "redis has no memory left for the record: it is at its maxmemory",
            at=where,
            hint="raise maxmemory, or free what others keep there; records that stand are still renewed",
        )
    if isinstance(error, library.MaxConnectionsError) or _says(text, "max number of clients reached"):
        return Overloaded(f"redis accepts no more connections: {text}", at=where, hint="raise its maxclients")
    for word, hint in _TEMPORARY.items():
        if _says(text, word) or isinstance(error, _CLASSES.get(word, ())):
            return Unreachable(f"redis does not serve now: {text}", at=where, hint=hint)
    if isinstance(error, (library.TimeoutError, TimeoutError)):
        return Unreachable("redis does not answer", at=where, hint="check that it is up and not overloaded")
    if isinstance(error, (library.ConnectionError, library.RedisClusterException, OSError)):
        return Unreachable(f"redis cannot be reached: {text}", at=where, hint=_reach_hint(text))
    if isinstance(error, library.ResponseError):
        return InternalError(f"redis answers with an error: {text}", at=where, hint="Redis 5 or newer is needed")
    return InternalError(f"redis: {text or type(error).__name__}", at=where)


def _reach_hint(text: str) -> str:
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "set redis.ca_file to the certificates that signed the server's"
    if "WRONG_VERSION_NUMBER" in text or "RECORD_LAYER_FAILURE" in text:
        return "the server speaks no TLS there: write redis instead of rediss"
    if "No master found" in text:
        return "check the master's name in redis.url, and that the sentinels see it up"
    return "check that the server is up, and redis.url (rediss where it wants TLS)"


def _says(text: str, *words: str) -> bool:
    return any(word in text for word in words)


LIBRARY_ERRORS = (library.RedisError, library.RedisClusterException, OSError)
"""What calls of the library raise; a TimeoutError is an OSError."""
