"""Tests of the limits of messages: those of the contract equal those of the wire."""

from __future__ import annotations

import pytest

from micro_core.contract import BadRequest, Message
from micro_core.contract.messages import (
    MAX_HEADERS,
    MAX_HEADERS_BYTES,
    MAX_MESSAGE_BYTES,
    check_message,
)
from micro_core.wire import limits


def test_limits_of_messages_match_the_limits_of_frames() -> None:
    assert MAX_MESSAGE_BYTES == limits.MAX_BODY_BYTES
    assert MAX_HEADERS + 4 == limits.MAX_METADATA_ENTRIES
    assert MAX_HEADERS_BYTES + 2 * 1024 == limits.MAX_HEADER_BYTES


def test_header_that_is_not_text_raises_bad_request() -> None:
    with pytest.raises(BadRequest, match="not text"):
        check_message(Message(id="1", body=b"", headers={"a": "\ud800"}))
