"""Parse the responses of JetStream to publications. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass

from micro_core.contract import Overloaded, TooLarge, Unreachable


@dataclass(frozen=True, slots=True)
class Stored:
    """A confirmation of JetStream: the stream, the sequence number, and whether the message was already stored."""

    stream: str
    sequence: int
    is_duplicate: bool


class StreamLost(Unreachable):
    """No stream stores this subject: it was deleted, or the server was restarted without its store."""


def read_stored(payload: bytes) -> Stored:
    """Parse a response of JetStream. Raises TooLarge, Overloaded or Unreachable if it reports an error."""
    try:
        answer = json.loads(payload)
        error = answer.get("error")
        if error is None:
            return Stored(str(answer["stream"]), int(answer["seq"]), answer.get("duplicate") is True)
        code, text = int(error.get("err_code", 0)), str(error.get("description", ""))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unreachable("invalid response of JetStream") from error
    if "exceeds maximum allowed" in text:
        raise TooLarge(f"JetStream: {text}", hint="raise max_msg_size of the stream")
    if "maximum" in text or "insufficient" in text:
        raise Overloaded(f"JetStream: {text} ({code})", hint="raise the limits of the stream or the server")
    raise Unreachable(f"JetStream: {text} ({code})", hint="nats stream report")
