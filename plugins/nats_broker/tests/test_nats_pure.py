"""Subjects, envelopes, pulls, servers, replay, dead letters, options: without a server and without a clock."""

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
# What NATS demands of a subject to publish on: parts that are not empty, without blanks and wildcards.
LEGAL_SUBJECT = re.compile(r"[^\s.*>]+(\.[^\s.*>]+)*")


def of(network: str = "go.micro", site: str = "eu") -> Subjects:
    return Subjects(network=network, site=site, root="micro")


# -------------------------------------------------------------------------------------- subjects


def test_a_topic_is_a_subject_of_its_network_and_site() -> None:
    assert of().of("orders.created") == "micro.go.micro@eu.orders.created"
    assert of().topic("micro.go.micro@eu.orders.created") == "orders.created"


@given(NAMES, SITES, NAMES)
def test_every_topic_has_a_legal_subject_and_comes_back(network: str, site: str, topic: str) -> None:
    subjects = of(network, site)
    assert LEGAL_SUBJECT.fullmatch(subjects.of(topic))
    assert subjects.topic(subjects.of(topic)) == topic
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,200}", subjects.stream)


@given(st.tuples(NAMES, SITES, NAMES), st.tuples(NAMES, SITES, NAMES))
def test_no_two_topics_share_a_subject(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    subjects = {of(network, site).of(topic) for network, site, topic in (one, other)}
    assert len(subjects) == len({one, other})


def test_a_network_does_not_hear_one_whose_name_goes_on_with_a_site() -> None:
    assert of("go", "micro").of("eu.x") != of("go.micro", "eu").of("x")


@pytest.mark.parametrize("subject", ["micro.go.micro@us.a", "micro.go.micro@eu.", "micro.go.micro@eu.a b", "x"])
def test_a_subject_that_no_topic_has_is_refused(subject: str) -> None:
    with pytest.raises(BadRequest):
        of().topic(subject)


@pytest.mark.parametrize("pattern", ["a", "*", ">", "a.*", "a.*.c", "a.>", "*.b.>", "a..b"])
def test_patterns_are_whole_parts(pattern: str) -> None:
    assert check_pattern(pattern) == pattern


@pytest.mark.parametrize("pattern", ["", "a*", "a.b*", ">.a", "a.>.b", "a b.*", "*.", "a.**", ".>"])
def test_what_is_no_pattern_is_refused(pattern: str) -> None:
    with pytest.raises(BadRequest):
        check_pattern(pattern)


def test_consumers_are_named_by_all_that_tells_them_apart() -> None:
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


def test_a_root_that_is_no_subject_is_refused() -> None:
    for root in ("", "a b", "a.", "a.*", "ä"):
        with pytest.raises(ValueError, match="subject_root"):
            Subjects(network="n", site="s", root=root)


# -------------------------------------------------------------------------------------- envelope

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=64), TEXTS, st.dictionaries(TEXTS, TEXTS))
def test_every_message_comes_back_as_it_was(identity: str, content_type: str, headers: dict[str, str]) -> None:
    message = Message(id=identity, body=b"\x00\xff", content_type=content_type, headers=headers)
    encoded = envelope.encode("a.b", message)
    for name, value in encoded.items():
        # RFC 7230 token, and what nats-py and servers leave alone.
        assert re.fullmatch(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", name)
        assert re.fullmatch(r"[ -~]*", value)
        assert value == value.strip()
    assert envelope.decode(encoded, message.body) == message


def test_plain_headers_are_plain_in_nats() -> None:
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
def test_a_publisher_s_header_never_speaks_to_the_server(name: str) -> None:
    message = Message(id="1", body=b"", headers={name: "all"})
    encoded = envelope.encode("t", message)
    theirs = [key for key in encoded if encoded[key] == "all"]
    assert theirs[0].startswith("%")
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
def test_what_a_stranger_publishes_is_malformed(headers: Any) -> None:
    with pytest.raises(Malformed):
        envelope.decode(headers, b"")


def test_the_bytes_are_counted_as_the_server_counts_them() -> None:
    headers = envelope.encode("t", Message(id="1", body=b"", headers={"ä": "ö "}))
    written = "NATS/1.0\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers.items()) + "\r\n"
    assert envelope.size(headers, b"123") == len(written.encode()) + 3


def test_what_is_no_text_is_the_publishers_fault() -> None:
    with pytest.raises(BadRequest):
        envelope.encode("t", Message(id="\ud800", body=b""))


# ----------------------------------------------------------------------------------------- pulls


def test_one_request_stands_at_a_time_and_fills_the_room() -> None:
    pulls = Pulls(max_held=64)
    assert pulls.request_count(0) == 64
    pulls.sent(64, 0.0)
    assert pulls.request_count(0) == 0
    for _ in range(64):
        pulls.arrived(0.0)
    assert pulls.request_count(64) == 0
    assert pulls.request_count(33) == 0
    assert pulls.request_count(32) == 32


def test_what_is_said_of_an_older_request_means_nothing() -> None:
    pulls = Pulls(max_held=8)
    pulls.sent(8, 0.0)
    pulls.reset()
    pulls.sent(8, 1.0)
    pulls.completed(1)
    assert pulls.request_count(0) == 0
    pulls.completed(2)
    assert pulls.request_count(0) == 8


def test_a_request_of_which_nothing_is_heard_is_forgotten() -> None:
    pulls = Pulls(max_held=8)
    pulls.sent(8, 0.0)
    pulls.heartbeat(pulls.number, 5.0)
    assert not pulls.has_timed_out(5.0 + TIMEOUT_S)
    assert pulls.has_timed_out(5.1 + TIMEOUT_S)
    pulls.reset()
    assert not pulls.has_timed_out(100.0)


@pytest.mark.parametrize(
    ("status", "description", "said"),
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
def test_statuses_are_read(status: str, description: str, said: PullStatus) -> None:
    assert parse_status(status, description) is said


# --------------------------------------------------------------------------------------- servers


def test_urls_are_servers() -> None:
    urls = ("nats://a", "tls://b:1", "127.0.0.1:4333", "nats://[::1]:5")
    assert [(one.host, one.port, one.is_tls) for one in parse_servers(urls, tls_hostname="")] == [
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
def test_a_wrong_url_is_refused_without_repeating_a_secret(url: str) -> None:
    with pytest.raises(OptionError) as caught:
        parse_servers((url,), tls_hostname="")
    assert "s3cret" not in str(caught.value)


def test_every_server_is_tried_once_a_round_and_pauses_grow() -> None:
    servers = parse_servers(("a", "b"), tls_hostname="")
    pool = ServerPool(servers, random.Random(3), retry_s=1.0)
    rounds = [[pool.next(), pool.next()] for _ in range(8)]
    for tries in rounds:
        assert {server.host for server, _ in tries} == {"a", "b"}
        assert tries[1][1] == 0.0
    pauses = [tries[0][1] for tries in rounds]
    assert pauses[0] == 0.0
    assert 0.025 <= pauses[1] <= 0.05
    assert all(0.5 <= pause <= 1.0 for pause in pauses[6:])


def test_the_server_that_was_lost_is_the_last_to_be_tried_and_others_told_of_come_before_it() -> None:
    (lost, other) = parse_servers(("tls://a", "tls://b"), tls_hostname="")
    pool = ServerPool([lost, other], random.Random(3), retry_s=1.0)
    pool.connected(lost, [("10.0.0.9", 4222), ("b", 4222)])
    order = [pool.next()[0] for _ in range(3)]
    assert order[-1] == lost
    told = next(server for server in order if server.host == "10.0.0.9")
    # Addresses are on no certificate: the cluster's name is demanded.
    assert told == Server("10.0.0.9", 4222, is_tls=True, tls_hostname="a")


# ------------------------------------------------------------------------------- replay, answers


def test_where_to_begin_is_read() -> None:
    noon = dt.datetime(2026, 11, 24, 12, tzinfo=dt.UTC)
    now = noon.timestamp()
    assert parse_replay_from("", now) == ReplayStart()
    assert parse_replay_from("all", now) == ReplayStart(is_everything=True)
    assert parse_replay_from("90s", now) == ReplayStart(moment=noon - dt.timedelta(seconds=90))
    assert parse_replay_from("1.5h", now) == ReplayStart(moment=noon - dt.timedelta(minutes=90))
    assert parse_replay_from("2026-11-24T12:00:00Z", 0.0) == parse_replay_from("2026-11-24T13:00:00+01:00", 0.0)
    assert parse_replay_from("2026-11-24T12:00:00", 0.0) == ReplayStart(moment=noon)
    for wrong in ("yesterday", "1y", "-1h", "9" * 400 + "d", "nan"):
        with pytest.raises(ValueError, match="replay_from"):
            parse_replay_from(wrong, now)


def test_jetstream_s_answers_are_read() -> None:
    assert read_stored(b'{"stream":"s","seq":7,"duplicate":true}') == Stored("s", 7, is_duplicate=True)
    for wrong in (b"", b"[]", b"{}", b'{"stream":"s"}', b"[" * 100_000, b'{"error":7}'):
        with pytest.raises(Exception, match="JetStream"):
            read_stored(wrong)
    assert issubclass(StreamLost, Exception)


# ------------------------------------------------------------------------------------ dead letters


def test_a_dead_letter_is_the_message_and_says_what_happened() -> None:
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
def test_a_dead_letter_fits_wherever_the_message_did(headers: dict[str, str], reason: str) -> None:
    letter = dead_letters.make_dead_letter(
        "t" * 253, Message(id="i" * 64, body=b"", headers=headers), "q" * 253, 5, reason * 99
    )
    check_message(letter)
    assert len(letter.headers) <= MAX_HEADERS


# ---------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 2},
        {"storage": "tape"},
        {"max_deliveries": 0},
        {"ack_wait_s": 0.0},
        {"drain_timeout_s": -1.0},
        {"dedupe_window_s": 10.0, "max_age_s": 5.0},
    ],
)
def test_options_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        NatsOptions(**wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"user": "a"},
        {"password": "s3cret"},
        {"user": "a", "password": "s3cret", "token": "s3cret"},
        {"tls_cert_file": "/x"},
    ],
)
def test_who_we_are_is_said_in_one_way(wrong: dict[str, str]) -> None:
    with pytest.raises(OptionError) as caught:
        check_credentials(NatsOptions(**wrong))  # type: ignore[arg-type]  # a table of texts
    assert "s3cret" not in str(caught.value)


def test_one_url_may_be_a_text() -> None:
    assert NatsOptions(url="nats://a, tls://b").urls == ("nats://a", "tls://b")
    assert NatsOptions(url=("nats://a",)).urls == ("nats://a",)


def test_secrets_are_not_shown() -> None:
    options = NatsOptions(user="a", password="s3cret", token="s3cret", nkey_seed="s3cret")
    assert "s3cret" not in repr(options)


def test_files_that_are_not_what_they_should_be_are_named(tmp_path: Any) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("nothing\n-----BEGIN NATS USER JWT-----")
    binary = tmp_path / "binary"
    binary.write_bytes(b"\xff" * 100)
    big = tmp_path / "big"
    big.write_bytes(b"x" * 70_000)
    for options in (
        {"nkey_seed": "SUs3cret"},
        {"creds_file": str(wrong)},
        {"creds_file": str(binary)},
        {"creds_file": str(big)},
        {"creds_file": str(tmp_path / "none")},
        {"tls_ca_file": str(wrong)},
        {"tls_ca_file": str(tmp_path / "none")},
        {"tls_cert_file": str(wrong), "tls_key_file": str(wrong)},
    ):
        with pytest.raises(OptionError, match=next(iter(options))) as caught:
            Credentials(NatsOptions(**options))  # type: ignore[arg-type]  # a table of texts
        assert "s3cret" not in str(caught.value)
