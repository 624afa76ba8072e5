"""Mutation tests: break each rule of the routing engine and show which test fails. Run by `make mutants`.

Each mutant replaces one piece of code in a copy of the tree. The tests of the package then run until one fails. A mutant
that no test detects survives: a test is missing.

    python tests/routing/mutants.py [--only TEXT] [--first N]
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
TESTS = (
    ("tests/routing",),
    ("tests/lab/test_explanations.py", "tests/lab/test_policies.py", "tests/lab/test_soak.py"),
)
"""Groups of tests. The slow second group runs only if the first one does not detect a mutant."""


@dataclass(frozen=True)
class Mutant:
    """A replacement that breaks one rule."""

    rule: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "an older sequence number never replaces a newer one",
        "import_filter.py",
        "announce.seqno < entry.newest_seqno or",
        "False or",
    ),
    Mutant(
        "a tombstone rejects its own sequence number",
        "import_filter.py",
        "(announce.seqno == entry.newest_seqno and entry.is_withdrawn)",
        "False",
    ),
    Mutant(
        "a final withdrawal leaves a tombstone",
        "engine.py",
        "entry.newest_seqno, entry.is_withdrawn = withdraw.seqno, True",
        "entry.is_withdrawn = True",
    ),
    Mutant(
        "an outdated final withdrawal is not final",
        "engine.py",
        "if not withdraw.is_final or entry is None or withdraw.seqno <= entry.newest_seqno:",
        "if not withdraw.is_final or entry is None:",
    ),
    Mutant(
        "a withdrawal of one neighbour removes no other route",
        "engine.py",
        "if not withdraw.is_final or entry is None or withdraw.seqno <= entry.newest_seqno:",
        "if entry is None or withdraw.seqno < entry.newest_seqno:",
    ),
    Mutant("split horizon", "export_filter.py", "or neighbour.peer in found.path", ""),
    Mutant("a path with our own id is a loop", "import_filter.py", "if router in announce.path:", "if False:"),
    Mutant(
        "a path begins at its origin and ends at its sender",
        "import_filter.py",
        "if announce.path[0] != announce.origin or announce.path[-1] != neighbour.peer:",
        "if False:",
    ),
    Mutant("paths are bounded", "import_filter.py", "if len(announce.path) >= limits.MAX_HOPS:", "if False:"),
    Mutant(
        "an earlier incarnation is rejected", "import_filter.py", "if announce.incarnation < incarnation:", "if False:"
    ),
    Mutant(
        "a later incarnation replaces the earlier one",
        "engine.py",
        "if not self._rib.update_incarnation(origin, incarnation):",
        "self._rib.update_incarnation(origin, incarnation)\n        if True:",
    ),
    Mutant(
        "only feasible routes are used",
        "rib_entry.py",
        "return advertised > seqno or (advertised == seqno and candidate.announce.metric_us < metric_us)",
        "return True",
    ),
    Mutant(
        "the feasibility distance only falls",
        "rib_entry.py",
        "selected.metric_us if advertised > seqno else min(min_metric_us, selected.metric_us)",
        "selected.metric_us",
    ),
    Mutant("a starved router requests a sequence number", "engine.py", "if entry.is_starved():", "if False:"),
    Mutant("requests are forwarded", "seqno_requests.py", "for peer in next_hops if peer != sender", "for peer in ()"),
    Mutant(
        "an origin answers a request with a later sequence number",
        "engine.py",
        "self._origin.increment_sequence(request.service)",
        "pass",
    ),
    Mutant("a lease ends", "engine.py", "if neighbour.accepted and neighbour.expires_at <= now:", "if False:"),
    Mutant(
        "a matching digest renews the lease",
        "engine.py",
        "if is_match:\n            neighbour.expires_at = now + self._options.lease_s",
        "if is_match:\n            pass",
    ),
    Mutant("a different digest requests the full table", "engine.py", "elif is_match is False:", "elif False:"),
    Mutant(
        "a closed link removes its routes",
        "engine.py",
        'for key in sorted(neighbour.accepted):\n            self._remove_candidate(key, neighbour, "link closed"',
        'for key in ():\n            self._remove_candidate(key, neighbour, "link closed"',
    ),
    Mutant(
        "a full table removes the routes that it does not contain",
        "engine.py",
        "for key in sorted(neighbour.accepted - neighbour.confirmed):",
        "for key in ():",
    ),
    Mutant("adverts are applied in order", "engine.py", "if not is_next:", "if False:"),
    Mutant("unacknowledged adverts are sent again", "neighbour.py", "if entry.due_at() <= now:", "if False:"),
    Mutant(
        "a neighbour that never acknowledges gets the full table",
        "neighbour.py",
        "if entry.tries >= RESYNC_AFTER_TRIES:",
        "if False:",
    ),
    Mutant(
        "changes are combined",
        "engine.py",
        "return self._options.coalesce_s * self._random.uniform(0.5, 1.0)",
        "return 0.0",
    ),
    Mutant(
        "a withdrawal that leaves no route is sent at once",
        "engine.py",
        "if is_requested or not entry.selected:\n            delay_s = 0.0",
        "if is_requested:\n            delay_s = 0.0",
    ),
    Mutant(
        "withdrawals are never suppressed",
        "origin.py",
        "if offer is not None:\n            if not self.damper.may_announce(service, now):",
        "if True:\n            if not self.damper.may_announce(service, now):",
    ),
    Mutant(
        "announcements of flapping services are suppressed",
        "origin.py",
        "if not self.damper.may_announce(service, now):",
        "if False:",
    ),
    Mutant("losses are counted", "origin.py", "self.damper.record_loss(service, now)", "pass"),
    Mutant(
        "a change of load is not a flap",
        "origin.py",
        "and (own.offer.versions, own.offer.capacity) != (offer.versions, offer.capacity)",
        "",
    ),
    Mutant(
        "the penalty has a ceiling",
        "damping.py",
        "min(self.policy.ceiling, self._decayed(history, now) + amount)",
        "self._decayed(history, now) + amount",
    ),
    Mutant(
        "reuse is guaranteed",
        "damping.py",
        "return min(latest, history.at + self.policy.half_life_s * math.log2(history.penalty / self.policy.reuse))",
        "return history.at + 1e9",
    ),
    Mutant("penalties decay", "damping.py", "history.penalty * 2.0 **", "history.penalty * 1.0 **"),
    Mutant(
        "a reused service is advertised",
        "engine.py",
        'self._history.record(now, service, "suppression ended")\n            self._schedule((self.router, service), now)',
        'self._history.record(now, service, "suppression ended")',
    ),
    Mutant("a dry run suppresses nothing", "damping.py", "return self.policy.dry_run", "return False"),
    Mutant(
        "costs have hysteresis",
        "metric.py",
        "if abs(cost_us - self.cost_us) <= SIGNIFICANT_CHANGE * self.cost_us:",
        "if cost_us == self.cost_us:",
    ),
    Mutant(
        "a change of cost must last",
        "metric.py",
        "if self._deviations < INTERVALS_BEFORE_CHANGE and not was_guess:",
        "if False:",
    ),
    Mutant("metrics add up", "metric.py", "return min(UNREACHABLE_US, metric_us + cost_us)", "return metric_us"),
    Mutant("instances are aggregated", "origin.py", "len(instances).bit_length() - 1", "len(instances)"),
    Mutant(
        "policies filter imports", "import_filter.py", "if not neighbour.policy.permits_import(announce):", "if False:"
    ),
    Mutant(
        "policies filter exports",
        "export_filter.py",
        "not neighbour.policy.permits_export(found, is_own=is_own)",
        "False",
    ),
    Mutant(
        "export=best advertises only the best origin",
        "export_filter.py",
        "if neighbour.policy.export is ExportScope.BEST and",
        "if False and",
    ),
    Mutant(
        "routes of one neighbour are bounded",
        "import_filter.py",
        "len(neighbour.accepted) >= limits.MAX_ROUTES_PER_NEIGHBOUR",
        "False",
    ),
    Mutant("a draining node withdraws everything", "engine.py", "self._origin.is_draining = True", "pass"),
    Mutant("a draining node advertises nothing", "export_filter.py", "if self._origin.is_draining:", "if False:"),
    Mutant(
        "a draining node withdraws routes of others at once",
        "engine.py",
        "for key in self._rib.entries:\n                    self._schedule(key, now)",
        "pass",
    ),
)


def run_tests(mutant: Mutant, copy: Path) -> str:
    """Run the tests against one mutant in a copy of the tree. Returns the first failed test, empty if all pass."""
    target = copy / "micro_core" / "routing" / mutant.file
    original = target.read_text()
    if mutant.old not in original:
        raise SystemExit(f"mutant «{mutant.rule}»: {mutant.file} does not contain {mutant.old!r} (adapt the mutant)")
    target.write_text(original.replace(mutant.old, mutant.new))
    try:
        return next(filter(None, (_first_failure(mutant, copy, tests) for tests in TESTS)), "")
    finally:
        target.write_text(original)


def _first_failure(mutant: Mutant, copy: Path, tests: Sequence[str]) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests],
        cwd=copy,
        capture_output=True,
        text=True,
        check=False,
    )
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1):
        raise SystemExit(f"mutant «{mutant.rule}»: the tests did not run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed.group(1) if failed else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", metavar="TEXT", help="run only the mutants whose rule contains TEXT")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="start with mutant number N")
    options = parser.parse_args()
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="micro-mutants-") as directory:
        copy = Path(directory)
        for name in ("micro_core", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "conftest.py", "README.md"):
            shutil.copy(ROOT / name, copy / name)
        for mutant in MUTANTS[options.first - 1 :]:
            if options.only not in mutant.rule:
                continue
            failed_test = run_tests(mutant, copy)
            survivors += not failed_test
            sys.stdout.write(f"{'caught  ' if failed_test else 'SURVIVED'}  {mutant.rule:<56} {failed_test}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{survivors} survived\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
