"""Options out of raw values: types, unknown names, secrets."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from micro_core.config import MASK, Rank, Value, build_options, shown, type_text
from micro_core.contract import option
from micro_core.contract.errors import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    port: int = option(1, "A port.")
    ratio: float = option(0.5, "A ratio.")
    fast: bool = option(False, "Haste.")
    host: str = option("", "A host.")
    hosts: tuple[str, ...] = option((), "Hosts.")
    ports: frozenset[int] = option(frozenset(), "Ports.")
    limit: int | None = option(None, "A bound, or none.")
    password: str = option("", "A secret.", secret=True)
    pin: int = option(0, "A secret number.", secret=True)

    def __post_init__(self) -> None:
        if self.port > 65_535:
            raise ValueError("port is over 65535")
        if not 0 <= self.ratio <= 8:
            raise OptionError(f"ratio = {self.ratio} is not from 0 to 8", hint="0.5 serves most")
        if self.host == "nowhere":
            raise OptionError("quic: host: nowhere is no host")


def of(raw: object, rank: Rank, origin: str = "here") -> Value:
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
def test_texts_of_flags_and_variables_are_read_as_what_the_field_wants(
    key: str, text: str, value: object, rank: Rank
) -> None:
    built = getattr(build_options(Options, {key: of(text, rank)}, "quic"), key)
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
def test_values_of_a_file_have_their_type(key: str, raw: object, value: object) -> None:
    assert getattr(build_options(Options, {key: of(raw, Rank.FILE)}, "quic"), key) == value


@pytest.mark.parametrize(
    ("key", "raw", "rank", "sentence"),
    [
        ("port", "high", Rank.SET, "quic.port: 'high' is not a whole number"),
        ("port", "1.5", Rank.SET, "quic.port: '1.5' is not a whole number"),
        ("port", "", Rank.ENVIRONMENT, "quic.port: '' is not a whole number"),
        ("port", "8085", Rank.FILE, "quic.port: '8085' is not a whole number"),
        ("port", 1.0, Rank.FILE, "quic.port: 1.0 is not a whole number"),
        ("port", True, Rank.FILE, "quic.port: True is not a whole number"),
        ("ratio", "nan", Rank.SET, "quic.ratio: 'nan' is not a number"),
        ("ratio", float("inf"), Rank.FILE, "quic.ratio: inf is not a number"),
        ("ratio", 10**400, Rank.FLAG, "is not a number"),
        ("fast", "perhaps", Rank.SET, "quic.fast: 'perhaps' is not true or false"),
        ("fast", 1, Rank.FILE, "quic.fast: 1 is not true or false"),
        ("host", 1, Rank.FILE, "quic.host: 1 is not a text"),
        ("host", {"a": 1}, Rank.FILE, "quic.host: {'a': 1} is not a text"),
        ("hosts", "a,b", Rank.FILE, "quic.hosts: 'a,b' is not a list of texts"),
        ("hosts", [1], Rank.FILE, "quic.hosts: [1] is not a list of texts"),
        ("ports", "1,x", Rank.SET, "quic.ports: '1,x' is not a list of whole numbers"),
        ("limit", "x", Rank.SET, "quic.limit: 'x' is not a whole number or nothing"),
    ],
)
def test_a_wrong_type_names_the_option_and_what_was_expected(key: str, raw: object, rank: Rank, sentence: str) -> None:
    with pytest.raises(OptionError) as caught:
        build_options(Options, {key: of(raw, rank, "micro.toml:14")}, "quic")
    assert sentence in caught.value.detail
    assert caught.value.at == "micro.toml:14"
    assert len(caught.value.detail) < 200


def test_an_unknown_option_comes_with_the_nearest() -> None:
    with pytest.raises(OptionError) as caught:
        build_options(Options, {"prot": of(1, Rank.FILE, "micro.toml:14")}, "quic")
    error = caught.value
    assert (error.detail, error.at) == ("quic: unknown option 'prot'", "micro.toml:14")
    assert error.hint == "did you mean 'port'?"


def test_an_option_unlike_any_comes_with_all_there_are() -> None:
    with pytest.raises(OptionError) as caught:
        build_options(Options, {"zzzz": of(1, Rank.FILE)}, "quic")
    assert caught.value.hint.startswith("options: fast, host, hosts")


def test_what_the_dataclass_itself_refuses_is_an_option_error() -> None:
    with pytest.raises(OptionError, match="quic: port is over 65535 at env MICRO_QUIC__PORT"):
        build_options(Options, {"port": of("70000", Rank.ENVIRONMENT, "env MICRO_QUIC__PORT")}, "quic")


def test_an_option_error_of_the_dataclass_itself_names_the_plugin_and_where_the_value_was_set() -> None:
    values = {"ratio": of("9", Rank.SET, "flag --set quic.ratio"), "port": of(5, Rank.FILE, "micro.toml:3")}
    with pytest.raises(OptionError) as caught:
        build_options(Options, values, "quic")
    assert str(caught.value) == (
        "quic: ratio = 9.0 is not from 0 to 8 at flag --set quic.ratio (hint: 0.5 serves most)"
    )
    with pytest.raises(OptionError) as caught:
        build_options(Options, {"host": of("nowhere", Rank.FILE, "micro.toml:4")}, "quic")
    assert str(caught.value) == "quic: host: nowhere is no host at micro.toml:4", "the name is not said twice"


@pytest.mark.parametrize(("key", "raw"), [("password", 271828), ("pin", "271828x")])
def test_an_error_about_a_secret_does_not_tell_it(key: str, raw: object) -> None:
    with pytest.raises(OptionError) as caught:
        build_options(Options, {key: of(raw, Rank.FILE)}, "quic")
    assert "271828" not in str(caught.value)
    assert MASK in caught.value.detail


def test_an_error_about_a_reference_does_not_tell_what_it_points_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMEWHERE", "271828x")
    with pytest.raises(OptionError) as caught:
        build_options(Options, {"port": of("$env:SOMEWHERE", Rank.FILE)}, "quic")
    assert "271828" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "seen"),
    [
        ("redis://:secret@h:6379/0", "redis://:***@h:6379/0"),
        ("redis+sentinel://user:se@cret@h:1,h:2/m", "redis+sentinel://user:***@h:1,h:2/m"),
        ("nats://a:secret@h1:4222,nats://b:secret@h2:4222", "nats://a:***@h1:4222,nats://b:***@h2:4222"),
        ("https://h:443/path?a=b:c@d", "https://h:443/path?a=b:c@d"),
        ("user@host:22", "user@host:22"),
    ],
)
def test_a_password_within_a_url_is_masked_wherever_it_stands(url: str, seen: str) -> None:
    assert shown(Options, "host", url) == seen
    assert shown(Options, "host", (url, "plain")) == (seen, "plain")


def test_secrets_are_masked_and_references_shown_as_they_were_said() -> None:
    assert shown(Options, "password", "s3cret") == MASK
    assert shown(Options, "password", "s3cret", of("$env:PW", Rank.FILE)) == MASK
    assert shown(Options, "password", "") == "", "that none is set is no secret"
    assert shown(Options, "host", "from file", of("$file:host", Rank.FILE)) == "$file:host"
    assert shown(Options, "port", 1, of(1, Rank.FILE)) == 1


def test_types_are_written_as_in_code() -> None:
    assert [type_text(wanted) for wanted in (int, tuple[str, ...], int | None)] == [
        "int",
        "tuple[str, ...]",
        "int | None",
    ]
