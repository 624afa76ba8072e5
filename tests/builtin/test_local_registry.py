"""The registry in files: crashed processes, invalid files, clocks, several processes and many records."""

import asyncio
import json
import os
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest

from micro_core.builtin.registry.local import LocalRegistry, LocalRegistryOptions
from micro_core.builtin.registry.process_identity import has_ended, process_token
from micro_core.builtin.registry.record_files import (
    MAX_FILE_BYTES,
    Record,
    path_component,
    read_record,
    record_name,
    remove_expired,
    renew_record,
    write_record,
)
from micro_core.builtin.registry.record_view import RecordView
from micro_core.contract import (
    CountersInMemory,
    DriverContext,
    Instance,
    OptionError,
    RegistryEventKind,
    TooLarge,
    Unreachable,
)

GREETER = Instance(service="greeter", id="greeter-1", address="tcp://127.0.0.1:4001")
MakeContext = Callable[..., DriverContext]
Opener = Callable[..., Awaitable[LocalRegistry]]

OWNER = """
import asyncio, logging, random, sys, time
from micro_core.builtin.registry.local import LocalRegistry, LocalRegistryOptions
from micro_core.contract import CountersInMemory, DriverContext, Instance

class RealClock:
    now = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

async def main(state_dir, prefix, count, lease_s, check_owner):
    context = DriverContext(
        node_id="b" * 32, network="go.micro", site="eu", state_dir=state_dir, clock=RealClock(),
        random=random.Random(1), logger=logging.getLogger("test"), counters=CountersInMemory(),
    )
    registry = LocalRegistry(LocalRegistryOptions(check_owner=check_owner == "True"), context)
    await registry.start()
    instances = [
        Instance(service="greeter", id=f"{prefix}-{number}", address="tcp://127.0.0.1:4001") for number in range(count)
    ]
    for instance in instances:
        await registry.register(instance, lease_s=lease_s)
    print("registered", flush=True)
    sys.stdin.readline()
    for instance in instances:
        await registry.register(instance, lease_s=lease_s)
    print("renewed", flush=True)
    sys.stdin.readline()
    await registry.close()

asyncio.run(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), sys.argv[5]))
"""


class OwnerProcess:
    """Another process that registers instances. After each call of `proceed` it renews them, then deregisters them."""

    def __init__(self, state_dir: str, prefix: str, *, count: int = 1, lease_s: float = 30, check_owner: bool = True):
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-c",
                textwrap.dedent(OWNER),
                state_dir,
                prefix,
                str(count),
                str(lease_s),
                str(check_owner),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    async def reported(self, status: str) -> None:
        assert self._process.stdout is not None
        async with asyncio.timeout(20):
            assert (await asyncio.to_thread(self._process.stdout.readline)).strip() == status

    def proceed(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def kill(self) -> None:
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


@pytest.fixture
async def opened(make_context: MakeContext) -> AsyncIterator[Opener]:
    registries: list[LocalRegistry] = []

    async def opener(**options: bool) -> LocalRegistry:
        registry = LocalRegistry(LocalRegistryOptions(poll_s=0.02, **options), make_context())
        await registry.start()
        registries.append(registry)
        return registry

    yield opener
    for registry in registries:
        await registry.close()


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "records"
    path.mkdir()
    return path


def counted(context: DriverContext) -> dict[str, int]:
    assert isinstance(context.counters, CountersInMemory)
    return context.counters.values


async def registry_with_context(make_context: MakeContext) -> tuple[LocalRegistry, DriverContext]:
    context = make_context()
    registry = LocalRegistry(LocalRegistryOptions(poll_s=0.02), context)
    await registry.start()
    return registry, context


@pytest.mark.parametrize("check_owner", [False, True])
async def test_records_of_a_killed_process_are_removed_within_their_lease_plus_one_second(
    opened: Opener, make_context: MakeContext, check_owner: bool
) -> None:
    lease_s = 1.0 if not check_owner else 60.0
    reader = await opened(check_owner=check_owner)
    watch = aiter(await reader.watch())
    owner = OwnerProcess(make_context().state_dir, "owned", lease_s=lease_s, check_owner=check_owner)
    try:
        await owner.reported("registered")
        async with asyncio.timeout(10):
            assert (await anext(watch)).kind is RegistryEventKind.CREATED
            owner.proceed()
            await owner.reported("renewed")
            killed_at = time.monotonic()
            owner.kill()
            assert (await anext(watch)).kind is RegistryEventKind.DELETED
        # With `check_owner` the record is removed before its lease expires: owners are checked every second.
        assert time.monotonic() - killed_at < (lease_s + 1 if not check_owner else 3)
        assert await reader.instances() == []
        assert list(reader.directory.iterdir()) == []
    finally:
        owner.end()


async def test_concurrent_writes_of_several_processes_are_all_seen(opened: Opener, make_context: MakeContext) -> None:
    reader = await opened()
    watch = aiter(await reader.watch("greeter"))
    owners = [OwnerProcess(make_context().state_dir, f"process-{number}", count=100) for number in range(2)]
    try:
        for number in range(50):
            await reader.register(replace(GREETER, id=f"own-{number}"), lease_s=30)
        expected = {f"process-{process}-{number}" for process in range(2) for number in range(100)}
        expected |= {f"own-{number}" for number in range(50)}
        seen: set[str] = set()
        async with asyncio.timeout(20):
            while seen != expected:
                event = await anext(watch)
                assert event.kind is RegistryEventKind.CREATED
                assert event.instance is not None
                assert event.instance.id not in seen
                seen.add(event.instance.id)
        assert {instance.id for instance in await reader.instances()} == expected
        for owner in owners:
            await owner.reported("registered")
            owner.proceed()
            await owner.reported("renewed")
            owner.proceed()
        removed: set[str] = set()
        async with asyncio.timeout(20):
            while len(removed) < 200:
                event = await anext(watch)
                assert event.kind is RegistryEventKind.DELETED
                assert event.instance is not None
                removed.add(event.instance.id)
        assert removed == {name for name in expected if name.startswith("process-")}
    finally:
        for owner in owners:
            owner.end()


async def test_two_thousand_instances_are_registered_seen_and_deregistered(opened: Opener) -> None:
    writer, reader = await opened(), await opened()
    watch = aiter(await reader.watch())
    instances = [replace(GREETER, id=f"greeter-{number}", service=f"service-{number % 50}") for number in range(2_000)]
    for instance in instances:
        await writer.register(instance, lease_s=60)
    assert len(await reader.instances()) == 2_000
    assert len(await reader.instances("service-7")) == 40
    # The watch has not been read: its queue may have overflowed, in which case it reports RESYNC.
    async with asyncio.timeout(10):
        assert (await anext(watch)).kind in {RegistryEventKind.CREATED, RegistryEventKind.RESYNC}
    start = time.monotonic()
    for instance in instances:
        await writer.register(instance, lease_s=60)
    renewal_s = time.monotonic() - start
    start = time.monotonic()
    for instance in instances:
        await writer.register(replace(instance, version="2"), lease_s=60)
    assert renewal_s < time.monotonic() - start
    await writer.close()
    assert await reader.instances() == []


async def test_watch_begins_with_each_of_two_thousand_existing_instances(opened: Opener) -> None:
    writer, reader = await opened(), await opened()
    for number in range(2_000):
        await writer.register(replace(GREETER, id=f"greeter-{number}"), lease_s=60)
    watch = aiter(await reader.watch())
    async with asyncio.timeout(10):
        events = [await anext(watch) for _ in range(2_000)]
    assert {event.kind for event in events} == {RegistryEventKind.CREATED}
    assert len({event.instance.id for event in events if event.instance}) == 2_000


async def test_invalid_files_are_ignored_and_counted_once(make_context: MakeContext) -> None:
    registry, context = await registry_with_context(make_context)
    await registry.register(GREETER, lease_s=30)
    valid = (registry.directory / record_name(GREETER.id)).read_bytes()
    invalid = {
        "empty.json": b"",
        "half.json": valid[: len(valid) // 2],
        "binary.json": bytes(range(256)),
        "list.json": b"[1, 2]",
        "deep.json": b"[" * 30_000,
        "number.json": b'{"instance": {}, "lease_s": ' + b"9" * 5_000 + b"}",
        "huge.json": b" " * (MAX_FILE_BYTES + 1),
        record_name("endless"): json.dumps(
            {"instance": {"service": "greeter", "id": "endless", "address": "tcp://x"}, "lease_s": 1e300}
        ).encode(),
        record_name("other"): valid,
    }
    for name, content in invalid.items():
        (registry.directory / name).write_bytes(content)
    (registry.directory / "directory.json").mkdir()
    (registry.directory / "link.json").symlink_to(registry.directory / record_name(GREETER.id))
    os.mkfifo(registry.directory / "pipe.json")
    (registry.directory / "note.txt").write_text("not a record")
    assert await registry.instances() == [GREETER]
    assert await registry.instances() == [GREETER]
    assert counted(context)["registry_records_malformed"] == len(invalid) + 3
    assert all((registry.directory / name).exists() for name in invalid)
    await registry.close()
    assert not (registry.directory / record_name(GREETER.id)).exists()


async def test_deleted_directory_is_created_again_by_the_next_renewal(opened: Opener) -> None:
    registry = await opened()
    await registry.register(GREETER, lease_s=30)
    for path in registry.directory.iterdir():
        path.unlink()
    registry.directory.rmdir()
    assert await registry.instances() == []
    await registry.register(GREETER, lease_s=30)
    assert await registry.instances() == [GREETER]


async def test_record_removed_by_another_process_is_written_again_by_the_next_renewal(opened: Opener) -> None:
    owner, other = await opened(), await opened()
    await owner.register(GREETER, lease_s=30)
    await other.deregister(GREETER)
    assert await owner.instances() == []
    await owner.register(GREETER, lease_s=30)
    assert await other.instances() == [GREETER]


async def test_directories_and_files_are_accessible_to_this_user_only(opened: Opener) -> None:
    registry = await opened()
    await registry.register(GREETER, lease_s=30)
    for path in (registry.directory, registry.directory.parent, registry.directory.parent.parent):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert stat.S_IMODE((registry.directory / record_name(GREETER.id)).stat().st_mode) == 0o600


async def test_unusable_state_directory_is_unreachable(make_context: MakeContext, tmp_path: Path) -> None:
    registry = LocalRegistry(LocalRegistryOptions(), replace(make_context(), state_dir=str(tmp_path / "file" / "x")))
    os.close(os.open(tmp_path / "file", os.O_CREAT))
    with pytest.raises(Unreachable, match="registry directory"):
        await registry.start()


async def test_record_larger_than_a_file_may_be_is_too_large(opened: Opener) -> None:
    registry = await opened()
    # Each control character has six bytes in JSON.
    with pytest.raises(TooLarge, match=str(MAX_FILE_BYTES)):
        await registry.register(
            replace(GREETER, metadata={f"key-{number}": "\x01" * 4_000 for number in range(10)}), lease_s=30
        )
    assert await registry.instances() == []
    assert list(registry.directory.iterdir()) == []


async def test_failed_poll_is_counted_and_polling_continues(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry, context = await registry_with_context(make_context)
    watch = aiter(await registry.watch())
    with monkeypatch.context() as patch:
        failed = asyncio.Event()
        loop = asyncio.get_running_loop()

        def refuse(*_: object) -> bool:
            loop.call_soon_threadsafe(failed.set)
            raise PermissionError(13, "Permission denied")

        patch.setattr(registry._view, "is_current", refuse)
        async with asyncio.timeout(5):
            await failed.wait()
    await registry.register(GREETER, lease_s=30)
    async with asyncio.timeout(5):
        assert (await anext(watch)).instance == GREETER
    assert counted(context)["registry_poll_failed"] >= 1
    await registry.close()


@pytest.mark.parametrize("poll_s", [0, -1, float("nan"), 3_600])
def test_poll_interval_out_of_range_is_an_option_error(make_context: MakeContext, poll_s: float) -> None:
    with pytest.raises(OptionError, match="poll_s"):
        LocalRegistry(LocalRegistryOptions(poll_s=poll_s), make_context())


# The files, with times given by the test.


def record(instance_id: str = "greeter-1", *, lease_s: float = 10.0, owner: str = "") -> Record:
    return Record(replace(GREETER, id=instance_id), lease_s, owner)


def test_lease_starts_again_with_each_renewal(directory: Path) -> None:
    view = RecordView(directory, check_owner=False)
    inode = write_record(directory, record(), wall=1_000.0)
    assert list(view.refresh(now=0.0, wall=1_001.0)) == ["greeter-1"]
    assert renew_record(directory, "greeter-1", inode, wall=1_008.0)
    assert list(view.refresh(now=16.9, wall=1_017.9)) == ["greeter-1"]
    assert list(view.refresh(now=17.1, wall=1_018.1)) == []
    assert list(directory.iterdir()) == []
    assert not renew_record(directory, "greeter-1", inode, wall=1_019.0)


def test_change_of_the_wall_clock_does_not_affect_records_that_were_read(directory: Path) -> None:
    view = RecordView(directory, check_owner=False)
    write_record(directory, record(), wall=1_000.0)
    assert len(view.refresh(now=0.0, wall=1_000.0)) == 1
    assert len(view.refresh(now=9.0, wall=9_000.0)) == 1
    assert len(view.refresh(now=10.1, wall=1_010.1)) == 0


def test_record_with_a_time_in_the_future_is_valid_for_one_lease(directory: Path) -> None:
    view = RecordView(directory, check_owner=False)
    write_record(directory, record(), wall=9_000.0)
    assert len(view.refresh(now=0.0, wall=1_000.0)) == 1
    assert view.refresh(now=9.9, wall=1_009.9)
    assert view.is_current(now=9.9)
    assert not view.is_current(now=10.0)
    assert view.refresh(now=10.0, wall=1_010.0) == {}


def test_unchanged_directory_is_current_after_the_settle_time(directory: Path) -> None:
    view = RecordView(directory, check_owner=False)
    write_record(directory, record(lease_s=100.0), wall=1_000.0)
    first = view.refresh(now=0.0, wall=1_000.0)
    assert not view.is_current(now=1.0)  # another write may have the same modification time
    assert view.refresh(now=1.0, wall=1_001.0) is first
    view.refresh(now=2.5, wall=1_002.5)
    assert view.is_current(now=3.0)
    write_record(directory, record("greeter-2", lease_s=100.0), wall=1_003.0)
    assert not view.is_current(now=3.0)
    assert len(view.refresh(now=3.0, wall=1_003.0)) == 2


def test_two_changes_with_the_same_modification_time_are_both_seen(directory: Path) -> None:
    view = RecordView(directory, check_owner=False)
    write_record(directory, record("one"), wall=1_000.0)
    modified_ns = directory.stat().st_mtime_ns
    assert len(view.refresh(now=0.0, wall=1_000.0)) == 1
    write_record(directory, record("two"), wall=1_000.0)
    os.utime(directory, ns=(modified_ns, modified_ns))
    assert len(view.refresh(now=0.1, wall=1_000.1)) == 2


def test_expired_record_that_was_renewed_in_the_meantime_is_restored(directory: Path) -> None:
    inode = write_record(directory, record(), wall=1_000.0)
    path = directory / record_name("greeter-1")
    signature, _ = read_record(path)
    assert renew_record(directory, "greeter-1", inode, wall=1_020.0)
    remove_expired(path, signature)
    assert read_record(path)[1] == record()
    assert [entry.name for entry in directory.iterdir()] == [path.name]
    remove_expired(path, read_record(path)[0])
    remove_expired(path, signature)
    assert list(directory.iterdir()) == []


def test_old_temporary_file_of_a_crashed_writer_is_removed(directory: Path) -> None:
    view = RecordView(directory, check_owner=False)
    temporary = directory / "1-2-abcd.tmp"
    temporary.write_text("{")
    os.utime(temporary, (1_000.0, 1_000.0))
    assert len(view.refresh(now=0.0, wall=1_010.0)) == 0
    assert temporary.exists()
    view.refresh(now=1.0, wall=1_100.0)
    assert not temporary.exists()


def test_records_of_an_ended_process_are_removed_before_their_lease_expires(directory: Path) -> None:
    child = subprocess.run(
        [
            sys.executable,
            "-c",
            "from micro_core.builtin.registry.process_identity import process_token as t; print(t())",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    ended = child.stdout.strip()
    if not ended:
        pytest.skip("processes cannot be identified on this system")
    write_record(directory, record("ended", owner=ended), wall=1_000.0)
    write_record(directory, record("running", owner=process_token()), wall=1_000.0)
    write_record(directory, record("other-host", owner="another-boot/pid:[1] 1 1"), wall=1_000.0)
    assert sorted(RecordView(directory, check_owner=True).refresh(now=0.0, wall=1_000.0)) == ["other-host", "running"]


@pytest.mark.parametrize("token", ["", "x", "a b c", "a 1", "a 1 2 3", "a -1 2", f"a {'9' * 50} 1", "a \u0661 1"])
def test_process_with_an_invalid_token_counts_as_running(token: str) -> None:
    assert not has_ended(token)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "/x", ".hidden", "a/b", "a\0b", "x" * 500, "\udc80"])
def test_any_name_becomes_one_path_component(name: str) -> None:
    for component in (path_component(name), record_name(name)):
        assert 0 < len(component.encode()) <= 255
        assert not component.startswith(".")
        assert "/" not in component
        assert "\0" not in component


def test_similar_names_have_different_files() -> None:
    names = ["a", "A", "a/b", "a%2Fb", "x" * 300, "x" * 301, "", ".", "_"]
    assert len({record_name(name).lower() for name in names}) == len(names)
    assert path_component("go.micro") == "go.micro"
