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
    (
        "tests/routing/test_engine_selection.py",
        "tests/routing/test_engine_exchange.py",
        "tests/routing/test_engine_offers.py",
        "tests/routing/test_engine_site.py",
    ),
    ("tests/routing",),
    ("tests/lab/test_explanations.py", "tests/lab/test_policies.py", "tests/lab/test_soak.py"),
)
"""Groups of tests. A slow group runs only if those before it do not detect a mutant."""


@dataclass(frozen=True)
class Mutant:
    """A replacement that breaks one rule."""

    rule: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant(
        "an earlier incarnation is rejected", "import_filter.py", "announce.seqno[0] < entry.newest_seqno[0]", "False"
    ),
    Mutant(
        "a tombstone rejects its own sequence number",
        "import_filter.py",
        "(entry.is_withdrawn and announce.seqno <= entry.newest_seqno)",
        "False",
    ),
    Mutant(
        "a final withdrawal leaves a tombstone",
        "receiver.py",
        "entry.newest_seqno, entry.is_withdrawn = seqno, True",
        "entry.newest_seqno = seqno",
    ),
    Mutant(
        "an outdated final withdrawal is not final",
        "receiver.py",
        "if withdraw.is_final and withdraw.seqno > entry.newest_seqno:",
        "if withdraw.is_final:",
    ),
    Mutant(
        "a withdrawal of one neighbour removes no other route",
        "receiver.py",
        "if withdraw.is_final and withdraw.seqno > entry.newest_seqno:",
        "if withdraw.seqno >= entry.newest_seqno:",
    ),
    Mutant(
        "split horizon",
        "export_filter.py",
        "if selected is None or neighbour.peer in selected.path:",
        "if selected is None:",
    ),
    Mutant("a path with our own id is a loop", "import_filter.py", "if router in path:", "if False:"),
    Mutant(
        "a path begins at its origin and ends at its sender",
        "import_filter.py",
        "if path[0] != announce.origin or path[-1] != neighbour.peer:",
        "if False:",
    ),
    Mutant("paths are bounded", "import_filter.py", "if len(path) >= limits.MAX_HOPS:", "if False:"),
    Mutant(
        "a later incarnation replaces the earlier one",
        "receiver.py",
        "if adjacency.path and adjacency.seqno[0] < seqno[0] and peer in self.neighbours:",
        "if False:",
    ),
    Mutant(
        "only feasible routes are used",
        "rib_entry.py",
        "and (seqno > fd_seqno or (seqno == fd_seqno and adjacency.min_metric_us < fd_metric_us))",
        "and True",
    ),
    Mutant(
        "the smallest advertised metric counts",
        "rib_entry.py",
        "and (seqno > fd_seqno or (seqno == fd_seqno and adjacency.min_metric_us < fd_metric_us))",
        "and (seqno > fd_seqno or (seqno == fd_seqno and adjacency.metric_us < fd_metric_us))",
    ),
    Mutant(
        "the smallest metric belongs to a sequence number",
        "receiver.py",
        "is_fresh = not adjacency.path or announce.seqno != adjacency.seqno or",
        "is_fresh = not adjacency.path or",
    ),
    Mutant(
        "a withdrawal forgets the smallest metric",
        "receiver.py",
        "is_fresh = not adjacency.path or announce",
        "is_fresh = announce",
    ),
    Mutant("a full table forgets the smallest metric", "receiver.py", "or neighbour.confirmed is not None\n", "\n"),
    Mutant("the feasibility distance only falls", "rib_entry.py", "elif metric_us < self.fd_metric_us:", "else:"),
    Mutant(
        "advertising a route reduces the feasibility distance at once",
        "export_filter.py",
        "if export is not before:",
        "if False:",
    ),
    Mutant(
        "the feasibility distance outlives a withdrawal that was not received",
        "rib.py",
        "if any(one.exported is not None for one in entry.adjacencies.values()):",
        "if False:",
    ),
    Mutant("a starved router requests a sequence number", "receiver.py", "if entry.is_starved(costs):", "if False:"),
    Mutant(
        "a clearly better infeasible route is requested",
        "receiver.py",
        "            if better:",
        "            if False:",
    ),
    Mutant(
        "requests because of a better route are limited",
        "seqno_requests.py",
        "if now - state.better_at < BETTER_RETRY_S:",
        "if False:",
    ),
    Mutant(
        "an infeasible route is requested when the feasible ones are suspect",
        "engine.py",
        "                effects += self._requester.endangered(entry, now)",
        "                pass",
    ),
    Mutant(
        "requests because of suspect next hops are limited",
        "seqno_requests.py",
        "now - state.endangered_at < ENDANGERED_RETRY_S",
        "False",
    ),
    Mutant(
        "requests are forwarded around suspect next hops",
        "seqno_requests.py",
        " and not self._neighbours[entry.selected].is_suspect",
        "",
    ),
    Mutant(
        "an unanswered request is repeated",
        "seqno_requests.py",
        "found = [origin for origin, state in self._states.items() if state.retry_at <= now]",
        "found = []",
    ),
    Mutant(
        "requests are forwarded",
        "seqno_requests.py",
        "            self._neighbours[peer].requests[request.origin] = forwarded",
        "            pass",
    ),
    Mutant(
        "a request is forwarded once",
        "seqno_requests.py",
        "(state.forwarded >= request.seqno and now - state.forwarded_at < RETRY_S)",
        "False",
    ),
    Mutant(
        "a requested sequence number is passed on at once",
        "advertiser.py",
        "for peer in self._requester.answered(entry):",
        "for peer in ():",
    ),
    Mutant(
        "an origin answers a request with a later sequence number",
        "engine.py",
        "                self._own_seqno_received(request.seqno, now)\n                neighbour",
        "                neighbour",
    ),
    Mutant(
        "the own sequence number is raised once per second",
        "engine.py",
        "now - self._raised_at < MIN_RAISE_INTERVAL_S or ",
        "",
    ),
    Mutant(
        "absurd sequence numbers are not believed",
        "origin.py",
        "or incarnation >= MAX_RAISED or sequence >= MAX_RAISED",
        "",
    ),
    Mutant(
        "an outdated origin is informed",
        "receiver.py",
        'if rejection == "routing_entries_outdated" and announce.path == (announce.origin,):',
        "if False:",
    ),
    Mutant("a lease ends", "engine.py", "if neighbour.origins and neighbour.expires_at <= now:", "if False:"),
    Mutant(
        "an expired lease is not renewed by the same digest",
        "neighbour.py",
        "        self.received_count = -1",
        "        pass",
    ),
    Mutant(
        "a matching digest renews the lease",
        "engine.py",
        "        if is_match:\n            neighbour.expires_at = now + self._options.lease_s",
        "        if is_match:\n            pass",
    ),
    Mutant("a different digest requests the full table", "engine.py", "elif is_match is False:", "elif False:"),
    Mutant(
        "a digest shows a lost advert",
        "neighbour.py",
        "        if digest.number >= self.next_number:",
        "        if False:",
    ),
    Mutant(
        "a closed link removes its routes",
        "engine.py",
        '            self._receiver.remove_candidate(entry, neighbour, "link closed", now, effects)',
        "            pass",
    ),
    Mutant(
        "a full table removes the routes that it does not contain",
        "receiver.py",
        "if missing.origin not in neighbour.confirmed:",
        "if False:",
    ),
    Mutant("adverts are applied in order", "receiver.py", "        if not is_next:", "        if False:"),
    Mutant(
        "a neighbour that never acknowledges gets the full table",
        "engine.py",
        "if neighbour.is_resync_due(now):",
        "if False:",
    ),
    Mutant(
        "adverts in flight are bounded", "neighbour.py", "return len(self._in_flight) < MAX_IN_FLIGHT", "return True"
    ),
    Mutant(
        "full tables are limited",
        "advertiser.py",
        "max(now, neighbour.last_full_at + MIN_FULL_TABLE_INTERVAL_S)",
        "now",
    ),
    Mutant(
        "changes at the origin are combined",
        "origin.py",
        "self._pending_at = now + self._options.coalesce_s * self._random.uniform(0.5, 1.0)",
        "self._pending_at = now",
    ),
    Mutant(
        "metrics wait for the slow clock",
        "advertiser.py",
        "            self.schedule_slow(entry.origin, now)\n        else:\n            return",
        "            self.schedule(entry.origin, now)\n        else:\n            return",
    ),
    Mutant(
        "the slow clock has a minimum interval",
        "neighbour.py",
        "self.slow_at = max(earliest, self.slow_sent_at + interval_s)",
        "self.slow_at = earliest",
    ),
    Mutant(
        "small changes of a metric are not advertised",
        "metric.py",
        "return difference_us > SIGNIFICANT_US and difference_us > SIGNIFICANT_CHANGE * advertised_us",
        "return difference_us > 0",
    ),
    Mutant(
        "a removal is passed on at once",
        "advertiser.py",
        "now if merged.removed else now + self._relay_s()",
        "now + self._relay_s()",
    ),
    Mutant("load is passed on with the slow clock", "advertiser.py", "if merged.is_only_load:", "if False:"),
    Mutant(
        "an older state of an offer changes nothing",
        "offer_list.py",
        "        if offers.knows(offer.service, version):",
        "        if False:",
    ),
    Mutant(
        "a whole list removes what it does not contain",
        "receiver.py",
        "if one.version <= version and service not in confirmed:",
        "if False:",
    ),
    Mutant(
        "unseen removals are passed on",
        "offer_list.py",
        "        # Recorded in any case: a neighbour may have learned the service from someone else.\n        offers.remove(service, version)",
        "        if service in offers.entries:\n            offers.remove(service, version)",
    ),
    Mutant("forgotten removals need the whole list", "offer_list.py", "if base < self._forgotten:", "if False:"),
    Mutant(
        "a gap in the list requests the full table",
        "receiver.py",
        "(not adjacency.is_partial and changes.base > offers.version)",
        "False",
    ),
    Mutant(
        "a view restricts the services of a neighbour",
        "receiver.py",
        "adjacency.view = (adjacency.view or set()) if is_partial else None",
        "adjacency.view = None",
    ),
    Mutant(
        "withdrawals are never suppressed",
        "origin.py",
        "offer = None if self.is_draining else offer_of(service, own.instances)\n        if offer is None:",
        "offer = None if self.is_draining else offer_of(service, own.instances)\n        if offer is None and not self.damper.may_announce(service, now):\n            return False\n        if offer is None:",
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
        "(own.offer.versions, own.offer.capacity) != (offer.versions, offer.capacity)",
        "own.offer != offer",
    ),
    Mutant(
        "interest has a damping of its own",
        "damping.py",
        "return self.interest_policy if service.startswith(INTEREST_PREFIX) else self.policy",
        "return self.policy",
    ),
    Mutant(
        "a smaller number of instances must last", "origin.py", "or now >= own.lower_since + CAPACITY_DROP_S", "or True"
    ),
    Mutant(
        "a slightly larger number of instances is not advertised",
        "origin.py",
        "if offer.capacity > advertised.capacity * CAPACITY_GROWTH:",
        "if True:",
    ),
    Mutant(
        "flapping links are the last resort",
        "engine.py",
        "self._rib.costs[peer] = add(neighbour.cost.cost_us, self.link_damper.penalty_us(peer, now))\n        neighbour.expires_at",
        "self._rib.costs[peer] = neighbour.cost.cost_us\n        neighbour.expires_at",
    ),
    Mutant("a damped link is used again", "engine.py", "for peer in self.link_damper.advance(now):", "for peer in ():"),
    Mutant(
        "origins of one neighbour are bounded",
        "receiver.py",
        "if neighbour.received_count >= limits.MAX_ORIGINS_PER_NEIGHBOUR:",
        "if False:",
    ),
    Mutant(
        "offers of one neighbour are bounded",
        "offer_list.py",
        "            if max_added <= 0:",
        "            if False:",
    ),
    Mutant(
        "policies filter imports",
        "import_filter.py",
        "if not neighbour.policy.permits_import(announce.site):",
        "if False:",
    ),
    Mutant(
        "policies filter imported services",
        "receiver.py",
        "changed = [one for one in changes.changed if permits(one.offer.service)]",
        "changed = [*changes.changed]",
    ),
    Mutant(
        "policies filter exports",
        "export_filter.py",
        "if not neighbour.policy.permits_export(site, is_own=is_own):",
        "if False:",
    ),
    Mutant(
        "policies filter exported services", "export_filter.py", "            permits(service)\n", "            True\n"
    ),
    Mutant(
        "export=best advertises only the best origin",
        "export_filter.py",
        "and (not is_best_only or self._is_best(entry.origin, service))",
        "",
    ),
    Mutant("a draining node withdraws everything", "engine.py", "origin.is_draining = True", "pass"),
    Mutant("a draining node advertises nothing", "export_filter.py", "if self._origin.is_draining:", "if False:"),
    Mutant(
        "the penalty has a ceiling",
        "damping.py",
        "min(history.policy.ceiling, self._decayed(history, now) + amount)",
        "self._decayed(history, now) + amount",
    ),
    Mutant(
        "reuse is guaranteed",
        "damping.py",
        "return min(latest, history.at + history.policy.half_life_s * math.log2(history.penalty / history.policy.reuse))",
        "return history.at + 1e9",
    ),
    Mutant("penalties decay", "damping.py", "history.penalty * 2.0 **", "history.penalty * 1.0 **"),
    Mutant("a dry run suppresses nothing", "damping.py", "return history.policy.dry_run", "return False"),
    Mutant(
        "costs have hysteresis",
        "metric.py",
        "if abs(cost_us - self.cost_us) <= max(SIGNIFICANT_US, SIGNIFICANT_CHANGE * self.cost_us):",
        "if cost_us == self.cost_us:",
    ),
    Mutant(
        "a change of cost must last",
        "metric.py",
        "if self._deviations < INTERVALS_BEFORE_CHANGE and not is_large:",
        "if False:",
    ),
    Mutant("metrics add up", "metric.py", "return min(UNREACHABLE_US, metric_us + cost_us)", "return metric_us"),
    Mutant(
        "a reused service is advertised",
        "engine.py",
        'self._history.record(now, service, "suppression ended")\n            self._origin.reuse(service, now)',
        'self._history.record(now, service, "suppression ended")',
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
