"""Two nodes started by `micro run` in network namespaces, with a router between them that drops UDP."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

UNSHARE = ["unshare", "--user", "--map-root-user", "--net"]


def skip_reason() -> str:
    """Return why this machine cannot run the test; empty if it can."""
    missing = [tool for tool in ("unshare", "nsenter", "ip") if shutil.which(tool) is None]
    if missing:
        return f"needs {', '.join(missing)}"
    check = "ip link add v0 type veth peer name v1 && ip rule add pref 10 ipproto udp table 100 && unshare --net true"
    result = subprocess.run([*UNSHARE, "sh", "-c", check], capture_output=True, text=True, check=False)
    return f"network namespaces are not available: {result.stderr.strip()[:200]}" if result.returncode else ""


@pytest.mark.timeout(180)
def test_nodes_link_over_tls_while_udp_is_dropped_and_move_to_quic_afterwards() -> None:
    reason = skip_reason()
    if reason:
        pytest.skip(reason)
    with tempfile.TemporaryDirectory(prefix="micro-") as state:
        result = subprocess.run(
            [*UNSHARE, sys.executable, str(Path(__file__).with_name("two_namespaces.py")), state],
            capture_output=True,
            text=True,
            timeout=170,
            check=False,
        )
    assert result.returncode == 0, result.stdout + result.stderr
    report = json.loads(result.stdout)
    # Shown by `pytest -rP`.
    sys.stdout.write(f"linked over TLS in {report['linked_s']:.3f} s, back on QUIC in {report['moved_s']:.1f} s\n")
    # The attempt delay of 0.4 s and two handshakes, measured from the time at which the node is ready. Dialling starts
    # slightly earlier. The rest is a margin for a busy machine.
    assert report["linked_s"] < 1.0 + 2.0, report
    (link,) = report["connections"]
    assert (link["driver"], link["why"]) == ("tls", "quic did not answer within 0.4 s")
    assert "over tls" in report["linked"]
    assert "quic did not answer" in report["linked"]
    # QUIC is probed after 3 s and then at growing intervals.
    assert report["moved_s"] < 30.0
    (link,) = report["connections_after"]
    assert (link["driver"], link["why"]) == ("quic", "quic answers again")
    assert sum("did not answer" in line and "linked to" in line for line in report["output"]) == 1
    assert not any("lost" in line for line in report["output"]), report["output"]
