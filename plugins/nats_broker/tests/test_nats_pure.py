"""The pure modules: subjects, envelopes, pull requests, servers, replay, dead letters and options."""

from __future__ import annotations

import datetime as dt
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from micro_nats_broker import dead_letters, envelope
from micro_nats_broker.credentials import Credentials, check_credentials
from micro_nats_broker.options import NatsOptions
from micro_nats_broker.pulls import TIMEOUT_S, Pulls, PullStatus, parse_status
from micro_nats_broker.replay import ReplayStart, parse_replay_from
from micro_nats_broker.servers import Server, ServerPool, parse_servers
from micro_nats_broker.stored import Stored, StreamLost, read_stored
from micro_nats_broker.subjects import Subjects, check_pattern, group_consumer, single_consumer

from micro_core.contract import BadRequest, Malformed, Message, OptionError
from micro_core.contract.messages import MAX_HEADERS, check_message

NAMES = st.from_regex(re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:/-]{0,20}[A-Za-z0-9_])?"), fullmatch=True)
SITES = st.from_regex(re.compile(r"[a-z0-9](?:[a-z0-9-]{0,10}[a-z0-9])?"), fullmatch=True)
# NATS requires that the parts of a subject are not empty and contain no white space or wildcards.
VALID_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")


def subjects_of(network: str = "go.micro", site: str = "eu") -> Subjects:
    return Subjects(network=network, site=site, root="micro")


# -------------------------------------------------------------------------------------- subjects


def test_subject_contains_network_site_and_topic() -> None:
    assert subjects_of().of("orders.created") == "micro.go.micro@eu.orders.created"
    assert subjects_of().topic("micro.go.micro@eu.orders.created") == "orders.created"


@given(NAMES, SITES, NAMES)
def test_topic_survives_a_round_trip_through_a_legal_subject(network: str, site: str, topic: str) -> None:
    subjects = subjects_of(network, site)
    assert VALID_SUBJECT.fullmatch(subjects.of(topic))
    assert subjects.topic(subjects.of(topic)) == topic
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,200}", subjects.stream)


@given(st.tuples(NAMES, SITES, NAMES), st.tuples(NAMES, SITES, NAMES))
def test_different_topics_have_different_subjects(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    subjects = {subjects_of(network, site).of(topic) for network, site, topic in (one, other)}
    assert len(subjects) == len({one, other})


def test_network_and_site_are_not_ambiguous_in_a_subject() -> None:
    assert subjects_of("go", "micro").of("eu.x") != subjects_of("go.micro", "eu").of("x")


@pytest.mark.parametrize("subject", ["micro.go.micro@us.a", "micro.go.micro@eu.", "micro.go.micro@eu.a b", "x"])
def test_subject_without_a_topic_is_rejected(subject: str) -> None:
    with pytest.raises(BadRequest):
        subjects_of().topic(subject)


@pytest.mark.parametrize("pattern", ["a", "*", ">", "a.*", "a.*.c", "a.>", "*.b.>", "a..b"])
def test_valid_pattern_is_returned_unchanged(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "a*", "a.b*", ">.a", "a.>.b", "a b.*", "*.", "a.**", ".>"])
def test_invalid_pattern_is_rejected(pattern: str) -> None:
    with pytest.raises(BadRequest):
        check_pattern(pattern)


def test_consumer_names_are_unique_per_subscription() -> None:
    names = {
        group_consumer("a", "q"),
        group_consumer("a.b", "q"),
        group_consumer("a", "q.b"),
        single_consumer("a", "node", 0, ""),
        single_consumer("a", "node", 1, ""),
        single_consumer("a", "node", 0, "all"),
        single_consumer("a", "other", 0, ""),
    }
    assert len(names) == 7
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name) for name in names)
    assert group_consumer("a", "ü b/c.*") == group_consumer("a", "ü b/c.*")


def test_invalid_subject_root_is_rejected() -> None:
    for root in ("", "a b", "a.", "a.*", "ä"):
        with pytest.raises(ValueError, match="subject_root"):
            Subjects(network="n", site="s", root=root)


# -------------------------------------------------------------------------------------- envelope

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64), TEXTS, st.dictionaries(TEXTS, TEXTS))
def test_message_survives_a_round_trip(identity: str, content_type: str, headers: dict[str, str]) -> None:
    message = Message(id=identity, body=b"\x00\xff", content_type=content_type, headers=headers)
    encoded = envelope.encode("a.b", message)
    for name, value in encoded.items():
        # Names are tokens of RFC 9110; nats-py and servers do not change such names and values.
        assert re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name)
        assert re.fullmatch(r"[ -~]*", value)
        assert value == value.strip()
    assert envelope.decode(encoded, message.body) == message


def test_printable_headers_are_not_escaped() -> None:
    encoded = envelope.encode("orders", Message(id="1f", body=b"", headers={"trace-id": "a b/c", "micro-origin": "n"}))
    assert encoded == {
        "Micro-Id": "1f",
        "Content-Type": "application/msgpack",
        "Nats-Msg-Id": "1f:orders",
        "trace-id": "a b/c",
        "micro-origin": "n",
    }


@pytest.mark.parametrize(
    "name", ["Nats-Rollup", "nats-expected-stream", "NATS-TTL", "Micro-Id", "content-type", "Status"]
)
def test_header_with_a_reserved_name_is_escaped(name: str) -> None:
    message = Message(id="1", body=b"", headers={name: "all"})
    encoded = envelope.encode("t", message)
    (escaped,) = [key for key in encoded if encoded[key] == "all"]
    assert escaped.startswith("%")
    assert (encoded["Micro-Id"], encoded["Content-Type"]) == ("1", "application/msgpack")
    assert envelope.decode(encoded, b"") == message


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {},
        {"a": "b"},
        {"Micro-Id": ""},
        {"Micro-Id": "x" * 65},
        {"Micro-Id": "%"},
        {"Micro-Id": "%zz"},
        {"Micro-Id": "%ff"},
        {"Micro-Id": "1", "Content-Type": "c" * 101},
        {"Micro-Id": "1", "%ff": "x"},
        {"Micro-Id": "1", "a": "x" * 20_000},
        {"Micro-Id": "1", **{f"h{number}": "" for number in range(70)}},
    ],
)
def test_invalid_envelope_is_malformed(headers: Any) -> None:
    with pytest.raises(Malformed):
        envelope.decode(headers, b"")


def test_size_equals_the_bytes_on_the_wire() -> None:
    headers = envelope.encode("t", Message(id="1", body=b"", headers={"ä": "ö "}))
    written = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    assert envelope.size(headers, b"123") == len(written.encode()) + 3


def test_unencodable_id_raises_bad_request() -> None:
    with pytest.raises(BadRequest):
        envelope.encode("t", Message(id="\ud800", body=b""))


# ----------------------------------------------------------------------------------------- pulls


def test_one_pull_request_at_a_time_fills_the_free_capacity() -> None:
    pulls = Pulls(max_held=64)
    assert pulls.request_count(0) == 64
    pulls.sent(64, 0.0)
    assert pulls.request_count(0) == 0
    for _ in range(64):
        pulls.arrived(0.0)
    assert pulls.request_count(64) == 0
    assert pulls.request_count(33) == 0
    assert pulls.request_count(32) == 32


def test_status_of_an_older_pull_request_is_ignored() -> None:
    pulls = Pulls(max_held=8)
    pulls.sent(8, 0.0)
    pulls.reset()
    pulls.sent(8, 1.0)
    pulls.completed(1)
    assert pulls.request_count(0) == 0
    pulls.completed(2)
    assert pulls.request_count(0) == 8


def test_pull_request_without_heartbeats_times_out() -> None:
    pulls = Pulls(max_held=8)
    pulls.sent(8, 0.0)
    pulls.heartbeat(pulls.number, 5.0)
    assert not pulls.has_timed_out(5.0 + TIMEOUT_S)
    assert pulls.has_timed_out(5.1 + TIMEOUT_S)
    pulls.reset()
    assert not pulls.has_timed_out(100.0)


@pytest.mark.parametrize(
    ("status", "description", "expected"),
    [
        ("100", "Idle Heartbeat", PullStatus.ACTIVE),
        ("404", "No Messages", PullStatus.COMPLETED),
        ("408", "Request Timeout", PullStatus.COMPLETED),
        ("409", "Leadership Change", PullStatus.COMPLETED),
        ("409", "Batch Completed", PullStatus.COMPLETED),
        ("409", "Consumer Deleted", PullStatus.CONSUMER_LOST),
        ("503", "", PullStatus.CONSUMER_LOST),
        ("", "", PullStatus.COMPLETED),
    ],
)
def test_status_is_parsed(status: str, description: str, expected: PullStatus) -> None:
    assert parse_status(status, description) is expected


# --------------------------------------------------------------------------------------- servers


def test_urls_are_parsed_into_servers() -> None:
    urls = ("nats://a", "tls://b:1", "127.0.0.1:4333", "nats://[::1]:5")
    assert [(server.host, server.port, server.is_tls) for server in parse_servers(urls, tls_hostname="")] == [
        ("a", 4222, False),
        ("b", 1, True),
        ("127.0.0.1", 4333, False),
        ("::1", 5, False),
    ]
    assert parse_servers(("nats://[::1]:5",), tls_hostname="")[0].url == "nats://[::1]:5"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "nats://",
        "http://a",
        "ws://a:80",
        "nats://a:99999",
        "nats://a/path",
        "nats://user:s3cret@a",
        "nats://s3cret@a",
    ],
)
def test_invalid_url_is_rejected_without_showing_a_secret(url: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_servers((url,), tls_hostname="")
    assert "s3cret" not in str(caught.value)


def test_each_server_is_dialled_once_per_round_and_pauses_grow() -> None:
    servers = parse_servers(("a", "b"), tls_hostname="")
    pool = ServerPool(servers, random.Random(3), retry_s=1.0)
    rounds = [[pool.next(), pool.next()] for _ in range(8)]
    for attempts in rounds:
        assert {server.host for server, _ in attempts} == {"a", "b"}
        assert attempts[1][1] == 0.0
    pauses = [attempts[0][1] for attempts in rounds]
    assert pauses[0] == 0.0
    assert 0.025 <= pauses[1] <= 0.05
    assert all(0.5 <= pause <= 1.0 for pause in pauses[6:])


def test_lost_server_is_dialled_after_all_configured_and_discovered_servers() -> None:
    (lost, other) = parse_servers(("tls://a", "tls://b"), tls_hostname="")
    pool = ServerPool([lost, other], random.Random(3), retry_s=1.0)
    pool.connected(lost, [("10.0.0.9", 4222), ("b", 4222)])
    order = [pool.next()[0] for _ in range(3)]
    assert order[-1] == lost
    discovered = next(server for server in order if server.host == "10.0.0.9")
    # Certificates rarely contain IP addresses, so the certificate must contain the configured host name.
    assert discovered == Server("10.0.0.9", 4222, is_tls=True, tls_hostname="a")


# ----------------------------------------------------------------------------- replay, responses


def test_replay_start_is_parsed() -> None:
    noon = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
    now = noon.timestamp()
    assert parse_replay_from("", now) == ReplayStart()
    assert parse_replay_from("all", now) == ReplayStart(is_everything=True)
    assert parse_replay_from("90s", now) == ReplayStart(moment=noon - dt.timedelta(seconds=90))
    assert parse_replay_from("1.5h", now) == ReplayStart(moment=noon - dt.timedelta(minutes=90))
    assert parse_replay_from("2026-11-24T12:00:00Z", 0.0) == parse_replay_from("2026-11-24T13:00:00+01:00", 0.0)
    assert parse_replay_from("2026-11-24T12:00:00", 0.0) == ReplayStart(moment=noon)
    for invalid in ("yesterday", "1y", "-1h", "9" * 400 + "d", "nan"):
        with pytest.raises(ValueError, match="replay_from"):
            parse_replay_from(invalid, now)


def test_jetstream_response_is_parsed() -> None:
    assert read_stored(b'{"stream":"s","seq":7,"duplicate":true}') == Stored("s", 7, is_duplicate=True)
    for invalid in (b"", b"[]", b"{}", b'{"stream":"s"}', b"[" * 100_000, b'{"error":7}'):
        with pytest.raises(Exception, match="JetStream"):
            read_stored(invalid)
    assert issubclass(StreamLost, Exception)


# ------------------------------------------------------------------------------------ dead letters


def test_dead_letter_contains_the_message_and_the_reason() -> None:
    message = Message(id="1", body=b"b", content_type="x/y", headers={"n": "1", "micro-origin": "far"})
    letter = dead_letters.make_dead_letter("orders", message, "workers", 5, "KeyError: 'x'\n")
    assert (letter.body, letter.content_type) == (b"b", "x/y")
    assert letter.headers == {
        "n": "1",
        "dead-letter-topic": "orders",
        "dead-letter-id": "1",
        "dead-letter-queue": "workers",
        "dead-letter-deliveries": "5",
        "dead-letter-reason": "KeyError: 'x' ",
    }
    assert letter.id == dead_letters.make_dead_letter("orders", message, "workers", 6, "other").id
    assert letter.id != dead_letters.make_dead_letter("orders", message, "others", 5, "KeyError").id


@given(st.dictionaries(TEXTS, st.text(st.characters(exclude_categories=["Cs"]), max_size=3_000), max_size=70), TEXTS)
def test_dead_letter_stays_within_the_message_limits(headers: dict[str, str], reason: str) -> None:
    letter = dead_letters.make_dead_letter(
        "t" * 253, Message(id="i" * 64, body=b"", headers=headers), "q" * 253, 5, reason * 99
    )
    check_message(letter)
    assert len(letter.headers) <= MAX_HEADERS


# ---------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "invalid",
    [
        {"replicas": 2},
        {"storage": "tape"},
        {"max_deliveries": 0},
        {"ack_wait_s": 0.0},
        {"drain_timeout_s": -1.0},
        {"dedupe_window_s": 10.0, "max_age_s": 5.0},
    ],
)
def test_invalid_options_are_rejected(invalid: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(invalid))):
        NatsOptions(**invalid)


@pytest.mark.parametrize(
    "invalid",
    [
        {"user": "a"},
        {"password": "s3cret"},
        {"user": "a", "password": "s3cret", "token": "s3cret"},
        {"tls_cert_file": "/x"},
    ],
)
def test_incomplete_or_ambiguous_credentials_are_rejected(invalid: dict[str, str]) -> None:
    with pytest.raises(OptionError) as caught:
        check_credentials(NatsOptions(**invalid))  # type: ignore[arg-type]  # a table of strings
    assert "s3cret" not in str(caught.value)


def test_urls_are_given_as_a_string_or_a_tuple() -> None:
    assert NatsOptions(url="nats://a, tls://b").urls == ("nats://a", "tls://b")
    assert NatsOptions(url=("nats://a",)).urls == ("nats://a",)


def test_secrets_are_not_shown() -> None:
    options = NatsOptions(user="a", password="s3cret", token="s3cret", nkey_seed="s3cret")
    assert "s3cret" not in repr(options)


def test_invalid_credential_file_is_rejected_with_the_option_name(tmp_path: Any) -> None:
    invalid = tmp_path / "invalid"
    invalid.write_text("nothing\n-----BEGIN NATS USER JWT-----")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff" * 100)
    big = tmp_path / "big"
    big.write_bytes(b"x" * 70_000)
    for options in (
        {"nkey_seed": "SUs3cret"},
        {"creds_file": str(invalid)},
        {"creds_file": str(binary)},
        {"creds_file": str(big)},
        {"creds_file": str(tmp_path / "none")},
        {"tls_ca_file": str(invalid)},
        {"tls_ca_file": str(tmp_path / "none")},
        {"tls_cert_file": str(invalid), "tls_key_file": str(invalid)},
    ):
        with pytest.raises(OptionError, match=next(iter(options))) as caught:
            Credentials(NatsOptions(**options))  # type: ignore[arg-type]  # a table of strings
        assert "s3cret" not in str(caught.value)
