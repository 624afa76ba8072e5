"""The key of a node and the token of a network, in files that only their owner can read."""

from __future__ import annotations

import multiprocessing
import stat
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from micro_core.contract.errors import ConfigError
from micro_core.contract.names import check_node_id
from micro_core.tunnel.identity import (
    NodeIdentity,
    is_member,
    is_signed_by,
    load_or_create_token,
    load_token,
    membership_proof,
    next_incarnation,
    node_id_of,
)


def make_key(path: str) -> str:
    return NodeIdentity.load_or_create(Path(path)).node_id


def make_token(path: Path) -> str:
    return load_or_create_token(path)


def secret_file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


def test_node_id_is_derived_from_the_key_and_is_stable(tmp_path: Path) -> None:
    first = NodeIdentity.load_or_create(tmp_path / "node.key")
    second = NodeIdentity.load_or_create(tmp_path / "node.key")
    assert first.node_id == second.node_id == node_id_of(first.public_bytes)
    assert check_node_id(first.node_id)
    assert NodeIdentity.generate().node_id != first.node_id


def test_secrets_are_readable_by_their_owner_only(tmp_path: Path) -> None:
    directory = tmp_path / "micro"
    NodeIdentity.load_or_create(directory / "node.key")
    load_or_create_token(directory / "token")
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in directory.iterdir()} == {0o600}
    assert {path.name for path in directory.iterdir()} == {"node.key", "token"}, "temporary files are removed"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_secret_readable_by_other_users_is_refused_with_a_hint(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "node.key"
    NodeIdentity.load_or_create(path)
    path.chmod(mode)
    for load in (NodeIdentity.load_or_create, load_or_create_token, load_token):
        with pytest.raises(ConfigError, match="chmod 600"):
            load(path)


@pytest.mark.parametrize("content", [b"", b"garbage", b"ab" * 31, b"\xff\xfe\x00", b"zz" * 32, b"ab" * 4_000])
def test_file_without_a_key_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(ConfigError):
        NodeIdentity.load_or_create(secret_file(tmp_path / "node.key", content))


@pytest.mark.parametrize("content", [b"", b" \n", b"\xff\xfe\x00"])
def test_file_without_a_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = secret_file(tmp_path / "token", content)
    for load in (load_or_create_token, load_token):
        with pytest.raises(ConfigError):
            load(path)


def test_missing_token_file_has_a_hint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="micro network token"):
        load_token(tmp_path / "token")


def test_whitespace_around_a_token_is_ignored(tmp_path: Path) -> None:
    assert load_token(secret_file(tmp_path / "token", b"  secret\n")) == "secret"


def test_processes_that_start_at_once_use_the_same_key(tmp_path: Path) -> None:
    path = str(tmp_path / "new" / "node.key")
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert len(set(pool.map(make_key, [path] * 8))) == 1


def test_threads_that_start_at_once_use_the_same_token(tmp_path: Path) -> None:
    for attempt in range(10):
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(make_token, [tmp_path / f"token{attempt}"] * 8))) == 1


def test_signature_is_valid_for_its_key_and_data_only() -> None:
    one, other = NodeIdentity.generate(), NodeIdentity.generate()
    signature = one.sign(b"data")
    assert is_signed_by(one.public_bytes, signature, b"data")
    assert not is_signed_by(one.public_bytes, signature, b"date")
    assert not is_signed_by(other.public_bytes, signature, b"data")
    assert not is_signed_by(one.public_bytes, signature[:-1], b"data")
    assert not is_signed_by(b"short", signature, b"data")
    assert not is_signed_by(b"\xff" * 32, signature, b"data")
    assert not is_signed_by(one.public_bytes, b"", b"data")


def test_membership_proof_is_valid_for_one_network_token_and_transcript() -> None:
    proof = membership_proof("go.micro", "secret", b"transcript")
    assert is_member("go.micro", "secret", b"transcript", proof)
    assert not is_member("go.other", "secret", b"transcript", proof)
    assert not is_member("go.micro", "secre", b"transcript", proof)
    assert not is_member("go.micro", "secret", b"another", proof)
    assert not is_member("go.micro", "secret", b"transcript", proof[:-1])
    assert not is_member("go.micro", "secret", b"transcript", b"")


def test_incarnation_grows_even_if_the_clock_is_set_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "node.incarnation"
    assert next_incarnation(path, 5_000) == 5_000
    assert next_incarnation(path, 3_000) == 5_001, "the clock was set back"
    assert next_incarnation(path, 9_000) == 9_000
    assert [entry.name for entry in path.parent.iterdir()] == [path.name], "temporary files are removed"


@pytest.mark.parametrize("content", [b"", b"-3", b"later", b"\xff\xff", b"1" * 400])
def test_unreadable_incarnation_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.incarnation"
    path.write_bytes(content)
    assert next_incarnation(path, 7_000) in (7_000, int("1" * 32) + 1)


@pytest.mark.parametrize(
    "make", [NodeIdentity.load_or_create, load_or_create_token, lambda path: next_incarnation(path, 1)]
)
def test_unwritable_path_is_a_configuration_error(tmp_path: Path, make: Callable[[Path], object]) -> None:
    (tmp_path / "file").write_text("a file where a directory is expected")
    with pytest.raises(ConfigError, match=r"cannot (read|write)"):
        make(tmp_path / "file" / "node.key")
