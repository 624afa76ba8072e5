"""What JetStream answers to a publication. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

from micro_core.contract import Overloaded, TooLarge, Unreachable


@dataclass(frozen=True, slots=True)
class Stored:
    """What JetStream answers: in which stream, and whether it had the message already."""

    stream: str
    sequence: int
    is_duplicate: bool


class StreamGone(Unreachable):
    """No stream takes this subject: it was deleted, or the server was restarted without its store."""


def read_stored(payload: bytes) -> Stored:
    """JetStream's answer to a publication. Raises what it says."""
    try:
        answer = json.loads(payload)
        error = answer.get("error")
        if error is None:
            return Stored(str(answer["stream"]), int(answer["seq"]), answer.get("duplicate") is True)
        code, said = int(error.get("err_code", 0)), str(error.get("description", ""))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unreachable("JetStream's answer cannot be read") from error
    if "exceeds maximum allowed" in said:
        raise TooLarge(f"JetStream: {said}", hint="raise max_msg_size of the stream")
    if "maximum" in said or "insufficient" in said:
        raise Overloaded(f"JetStream: {said} ({code})", hint="raise the stream's or the server's bounds")
    raise Unreachable(f"JetStream: {said} ({code})", hint="nats stream report")
