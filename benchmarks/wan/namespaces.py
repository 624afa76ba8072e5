"""Network namespaces, TUN devices in them, and processes that run in them.

A namespace has no name in the file system: it exists as long as this process, or a process in it, does. So nothing is left
behind, however the benchmark ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO

TUNSETIFF = 0x400454CA
IFF_TUN = 0x0001
IFF_NO_PI = 0x1000
CLONE_NEWNET = 0x4000_0000
PR_SET_PDEATHSIG = 1

DEVICE = "wan0"
"""Name of the TUN device in each namespace."""

QUEUE_PACKETS = 4_000
"""Packets that wait in the device while the relay is not scheduled."""

_libc = ctypes.CDLL(None, use_errno=True)


def skip_reason() -> str:
    """Return why this machine cannot make namespaces with TUN devices; empty if it can."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return "needs root, or `unshare --user --map-root-user --net`"
    try:
        namespace = Namespace()
    except OSError as error:
        return f"network namespaces are not available: {error}"
    try:
        os.close(namespace.open_tun())
        namespace.run_ip("link set lo up")
    except (OSError, subprocess.SubprocessError) as error:
        return f"TUN devices are not available: {error}"
    finally:
        namespace.close()
    return ""


class Namespace:
    """A new network namespace. Raises OSError if the process may not create one."""

    def __init__(self) -> None:
        with _own_namespace_kept():
            _check(_libc.unshare(CLONE_NEWNET))
            self._fd = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Leave the namespace to the processes in it. The kernel removes it with the last of them."""
        os.close(self._fd)

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Run the block with this thread in the namespace. Sockets that are opened in it stay there."""
        with _own_namespace_kept():
            _check(_libc.setns(self._fd, CLONE_NEWNET))
            yield

    def open_tun(self) -> int:
        """Create the TUN device and return its file descriptor. The device is removed when it is closed."""
        with self.entered():
            fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
            except OSError:
                os.close(fd)
                raise
        return fd

    def open_udp(self, host: str, port: int) -> socket.socket:
        """Return a UDP socket in the namespace that is bound to `host` and `port`."""
        with self.entered():
            opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            opened.bind((host, port))
        opened.setblocking(False)
        return opened

    def run_ip(self, *commands: str) -> None:
        """Run commands of `ip` in the namespace. Raises CalledProcessError if one fails."""
        subprocess.run(
            ["ip", "-batch", "-"],
            input="\n".join(commands) + "\n",
            text=True,
            check=True,
            capture_output=True,
            preexec_fn=self.enter_child(),
        )

    def configure(self, addresses: Sequence[str], networks: str, mtu: int = 1500) -> None:
        """Give the TUN device its addresses and the route to all other clouds."""
        self.run_ip(
            "link set lo up",
            *(f"addr add {address}/32 dev {DEVICE}" for address in addresses),
            f"link set {DEVICE} mtu {mtu} txqueuelen {QUEUE_PACKETS} addrgenmode none up",
            f"route add {networks} dev {DEVICE} src {addresses[0]}",
        )

    def enter_child(self) -> Callable[[], None]:
        """Return a function for `preexec_fn`: the child enters the namespace, and is killed when this process ends."""
        fd = self._fd

        def enter() -> None:
            _check(_libc.setns(fd, CLONE_NEWNET))
            die_with_parent()

        return enter

    def popen(
        self,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        output: IO[bytes],
        stdin: int = subprocess.DEVNULL,
    ) -> subprocess.Popen[bytes]:
        """Start a process in the namespace, in a session of its own so that Ctrl-C reaches this process only."""
        return subprocess.Popen(
            command,
            env=dict(environment),
            stdin=stdin,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=self.enter_child(),  # noqa: PLW1509
        )


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, even by SIGKILL."""
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def _own_namespace_kept() -> Iterator[None]:
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield
    finally:
        try:
            _check(_libc.setns(own, CLONE_NEWNET))
        finally:
            os.close(own)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
