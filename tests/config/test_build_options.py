"""Tests of `build_options` and `display_value`: types, unknown names, secrets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from micro_core.config import MASK, Rank, Value, build_options, display_value, type_name
from micro_core.contract import option
from micro_core.contract.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    port: int = option(1, "A port.")
    ratio: float = option(0.5, "A ratio.")
    fast: bool = option(False, "Speed.")
    host: str = option("", "A host.")
    hosts: tuple[str, ...] = option((), "Hosts.")
    ports: frozenset[int] = option(frozenset(), "Ports.")
    limit: int | None = option(None, "A limit.")
    password: str = option("", "A secret.", secret=True)
    pin: int = option(0, "A secret number.", secret=True)

    def __post_init__(self) -> None:
        if self.port > 65_535:
            raise ValueError("port is over 65535")
        if not 0 <= self.ratio <= 8:
            raise OptionError(f"ratio = {self.ratio} is not from 0 to 8", hint="try 0.5")
        if self.host == "nowhere":
            raise OptionError("quic: host: invalid host nowhere")


def value_of(raw: object, rank: Rank, origin: str = "here") -> Value:
    return Value(raw, origin, rank)


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("port", " 8085 ", 8085),
        ("port", "-1", -1),
        ("ratio", "2", 2.0),
        ("ratio", "1e-3", 0.001),
        ("fast", "1", True),
        ("fast", "True", True),
        ("fast", "off", False),
        ("host", " a ", " a "),
        ("hosts", "a, b,", ("a", "b")),
        ("hosts", "", ()),
        ("ports", "1,2,2", frozenset({1, 2})),
        ("limit", "", None),
        ("limit", "3", 3),
    ],
)
@pytest.mark.parametrize("rank", [Rank.ENVIRONMENT, Rank.SET, Rank.FLAG])
def test_string_of_a_flag_or_variable_is_converted_to_the_type_of_the_field(
    key: str, text: str, value: object, rank: Rank
) -> None:
    built = getattr(build_options(Options, {key: value_of(text, rank)}, "quic"), key)
    assert built == value
    assert type(built) is type(value)


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("port", 8085, 8085),
        ("ratio", 2, 2.0),
        ("fast", True, True),
        ("host", "a", "a"),
        ("hosts", ["a", "b"], ("a", "b")),
        ("limit", 3, 3),
    ],
)
def test_value_of_a_file_keeps_its_type(key: str, raw: object, value: object) -> None:
    assert getattr(build_options(Options, {key: value_of(raw, Rank.FILE)}, "quic"), key) == value


@pytest.mark.parametrize(
    ("key", "raw", "rank", "sentence"),
    [
        ("port", "high", Rank.SET, "quic.port: 'high' is not an integer"),
        ("port", "1.5", Rank.SET, "quic.port: '1.5' is not an integer"),
        ("port", "", Rank.ENVIRONMENT, "quic.port: '' is not an integer"),
        ("port", "8085", Rank.FILE, "quic.port: '8085' is not an integer"),
        ("port", 1.0, Rank.FILE, "quic.port: 1.0 is not an integer"),
        ("port", True, Rank.FILE, "quic.port: True is not an integer"),
        ("ratio", "nan", Rank.SET, "quic.ratio: 'nan' is not a number"),
        ("ratio", float("inf"), Rank.FILE, "quic.ratio: inf is not a number"),
        ("ratio", 10**400, Rank.FLAG, "is not a number"),
        ("fast", "perhaps", Rank.SET, "quic.fast: 'perhaps' is not true or false"),
        ("fast", 1, Rank.FILE, "quic.fast: 1 is not true or false"),
        ("host", 1, Rank.FILE, "quic.host: 1 is not a string"),
        ("host", {"a": 1}, Rank.FILE, "quic.host: {'a': 1} is not a string"),
        ("hosts", "a,b", Rank.FILE, "quic.hosts: 'a,b' is not a list of strings"),
        ("hosts", [1], Rank.FILE, "quic.hosts: [1] is not a list of strings"),
        ("ports", "1,x", Rank.SET, "quic.ports: '1,x' is not a list of integers"),
        ("limit", "x", Rank.SET, "quic.limit: 'x' is not an integer or empty"),
    ],
)
def test_value_of_the_wrong_type_is_reported_with_option_and_expected_type(
    key: str, raw: object, rank: Rank, sentence: str
) -> None:
    with pytest.raises(OptionError) as caught:
        build_options(Options, {key: value_of(raw, rank, "micro.toml:14")}, "quic")
    assert sentence in caught.value.detail
    assert caught.value.at == "micro.toml:14"
    assert len(caught.value.detail) < 200


def test_error_of_a_misspelled_option_suggests_a_similar_one() -> None:
    with pytest.raises(OptionError) as caught:
        build_options(Options, {"prot": value_of(1, Rank.FILE, "micro.toml:14")}, "quic")
    error = caught.value
    assert (error.detail, error.at) == ("unknown setting 'quic.prot'", "micro.toml:14")
    assert error.hint == "did you mean 'port'?"


def test_error_of_an_unknown_option_lists_all_options() -> None:
    with pytest.raises(OptionError) as caught:
        build_options(Options, {"zzzz": value_of(1, Rank.FILE)}, "quic")
    assert caught.value.hint.startswith("the settings of quic are fast, host, hosts")


def test_value_error_of_the_dataclass_becomes_an_option_error() -> None:
    with pytest.raises(OptionError, match="quic: port is over 65535 at env MICRO_QUIC__PORT"):
        build_options(Options, {"port": value_of("70000", Rank.ENVIRONMENT, "env MICRO_QUIC__PORT")}, "quic")


def test_option_error_of_the_dataclass_contains_the_plugin_and_the_origin_of_the_value() -> None:
    values = {"ratio": value_of("9", Rank.SET, "flag --set quic.ratio"), "port": value_of(5, Rank.FILE, "micro.toml:3")}
    with pytest.raises(OptionError) as caught:
        build_options(Options, values, "quic")
    assert str(caught.value) == ("quic: ratio = 9.0 is not from 0 to 8 at flag --set quic.ratio (hint: try 0.5)")
    with pytest.raises(OptionError) as caught:
        build_options(Options, {"host": value_of("nowhere", Rank.FILE, "micro.toml:4")}, "quic")
    assert str(caught.value) == "quic: host: invalid host nowhere at micro.toml:4", "the name occurs once"


@pytest.mark.parametrize(("key", "raw"), [("password", 271828), ("pin", "271828x")])
def test_error_does_not_contain_the_secret(key: str, raw: object) -> None:
    with pytest.raises(OptionError) as caught:
        build_options(Options, {key: value_of(raw, Rank.FILE)}, "quic")
    assert "271828" not in str(caught.value)
    assert MASK in caught.value.detail


def test_error_does_not_contain_the_value_of_a_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "271828x")
    with pytest.raises(OptionError) as caught:
        build_options(Options, {"port": value_of("$env:SOMEWHERE", Rank.FILE)}, "quic")
    assert "271828" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://:secret@h:6379/0", "redis://:***@h:6379/0"),
        ("redis+sentinel://user:se@cret@h:1,h:2/m", "redis+sentinel://user:***@h:1,h:2/m"),
        ("nats://a:secret@h1:4222,nats://b:secret@h2:4222", "nats://a:***@h1:4222,nats://b:***@h2:4222"),
        ("https://h:443/path?a=b:c@d", "https://h:443/path?a=b:c@d"),
        ("user@host:22", "user@host:22"),
    ],
)
def test_password_in_a_url_is_masked(url: str, masked: str) -> None:
    assert display_value(Options, "host", url) == masked
    assert display_value(Options, "host", (url, "plain")) == (masked, "plain")


def test_secrets_are_masked_and_references_are_displayed_unresolved() -> None:
    assert display_value(Options, "password", "s3cret") == MASK
    assert display_value(Options, "password", "s3cret", value_of("$env:PW", Rank.FILE)) == MASK
    assert display_value(Options, "password", "") == "", "an empty secret is not masked"
    assert display_value(Options, "host", "from file", value_of("$file:host", Rank.FILE)) == "$file:host"
    assert display_value(Options, "port", 1, value_of(1, Rank.FILE)) == 1


def test_type_name_is_written_as_in_code() -> None:
    assert [type_name(wanted) for wanted in (int, tuple[str, ...], int | None)] == [
        "int",
        "tuple[str, ...]",
        "int | None",
    ]
