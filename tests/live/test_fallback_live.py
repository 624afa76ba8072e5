"""UDP blocked for real: by a router between two network namespaces, with the nodes that `micro run` starts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

UNSHARE = ["unshare", "--user", "--map-root-user", "--net"]


def why_not() -> str:
    """Why this machine cannot run it; empty if it can."""
    missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    tries = "ip link add v0 type veth peer name v1 && ip rule add pref 10 ipproto udp table 100 && unshare --net true"
    done = subprocess.run([*UNSHARE, "sh", "-c", tries], capture_output=True, text=True, check=False)
    return f"no network namespaces here: {done.stderr.strip()[:200]}" if done.returncode else ""


@pytest.mark.timeout(180)
def test_where_a_router_drops_udp_nodes_link_over_tls_and_move_to_quic_when_it_lets_it_through() -> None:
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="micro-") as state:
        done = subprocess.run(
            [*UNSHARE, sys.executable, str(Path(__file__).with_name("two_namespaces.py")), state],
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    # Seen with `pytest -rP`.
    sys.stdout.write(f"linked over TLS in {report['linked_s']:.3f} s, back on QUIC in {report['moved_s']:.1f} s\n")
    # Dialling begins a little before the node says that it is ready.
    assert report["linked_s"] < 1.0 + 2.0, report
    (link,) = report["connections"]
    assert (link["driver"], link["why"]) == ("tls", "quic gave no answer in 0.4 s")
    assert "over tls" in report["linked"]
    assert "quic gave no answer" in report["linked"]
    # Tried again after 3 s, then ever more seldom.
    assert report["moved_s"] < 30.0
    (link,) = report["connections_after"]
    assert (link["driver"], link["why"]) == ("quic", "quic answers again")
    assert sum("gave no answer" in line and "linked to" in line for line in report["output"]) == 1
    assert not any("lost" in line for line in report["output"]), report["output"]
