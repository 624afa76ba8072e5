"""Break each rule of the routing engine on purpose, and see which test notices: `make mutants`.

Each mutant is a line of the engine replaced in a copy of the tree, in which the tests of the room run until one fails. A mutant that
no test catches survives, and asks for a test.

    python tests/routing/mutants.py [--only WORD]
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROOM = ROOT / "micro_core" / "routing"
TESTS = ("tests/routing", "tests/lab/test_explanations.py", "tests/lab/test_policies.py", "tests/lab/test_soak.py")


@dataclass(frozen=True)
class Mutant:
    """One rule, broken."""

    rule: str
    file: str
    old: str
    new: str


MUTANTS = (
    Mutant("older words never replace newer ones", "belief.py", "announce.at < learned.newest or", "False or"),
    Mutant("a tombstone stands", "belief.py", "(announce.at == learned.newest and learned.is_withdrawn)", "False"),
    Mutant(
        "a withdrawal of the origin leaves a tombstone",
        "engine.py",
        "learned.newest, learned.is_withdrawn = withdraw.at, True",
        "learned.is_withdrawn = True",
    ),
    Mutant(
        "a withdrawal carries its version",
        "engine.py",
        "if not withdraw.is_final or learned is None or withdraw.at <= learned.newest:",
        "if not withdraw.is_final or learned is None:",
    ),
    Mutant(
        "one neighbour's loss is not everybody's",
        "engine.py",
        "if not withdraw.is_final or learned is None or withdraw.at <= learned.newest:",
        "if learned is None or withdraw.at < learned.newest:",
    ),
    Mutant("split horizon", "exports.py", "found is None or neighbour.peer in found.path", "found is None"),
    Mutant("a path with our own id is a loop", "belief.py", "if router in announce.path:", "if False:"),
    Mutant(
        "a path begins at its origin and ends at its sender",
        "belief.py",
        "if announce.path[0] != announce.origin or announce.path[-1] != neighbour.peer:",
        "if False:",
    ),
    Mutant("paths are bounded", "belief.py", "if len(announce.path) >= limits.MAX_HOPS:", "if False:"),
    Mutant("an earlier life is not believed", "belief.py", "if announce.incarnation < incarnation:", "if False:"),
    Mutant(
        "a later life supersedes the earlier one",
        "engine.py",
        "if not self._known.begins_life(origin, incarnation):",
        "self._known.begins_life(origin, incarnation)\n        if True:",
    ),
    Mutant(
        "only feasible ways are used",
        "learned.py",
        "return at > version or (at == version and candidate.announce.metric_us < metric_us)",
        "return True",
    ),
    Mutant(
        "the feasibility distance only falls",
        "learned.py",
        "chosen.metric_us if at > version else min(least_us, chosen.metric_us)",
        "chosen.metric_us",
    ),
    Mutant("who is starved asks", "engine.py", "if learned.is_starved():", "if False:"),
    Mutant("requests are passed on", "sequence_requests.py", "for peer in towards if peer != sender", "for peer in ()"),
    Mutant(
        "an origin that is asked tells a later sequence",
        "engine.py",
        "self._origin.renew_sequence(request.service)",
        "pass",
    ),
    Mutant("a lease ends", "engine.py", "if neighbour.learned and neighbour.expires_at <= now:", "if False:"),
    Mutant(
        "a digest that agrees renews the lease",
        "engine.py",
        "if agrees:\n            neighbour.expires_at = now + self._options.lease_s",
        "if agrees:\n            pass",
    ),
    Mutant("a digest that differs is answered", "engine.py", "elif agrees is False:", "elif False:"),
    Mutant(
        "a link that is gone takes its ways",
        "engine.py",
        "for key in sorted(neighbour.learned):\n            self._drop",
        "for key in ():\n            self._drop",
    ),
    Mutant(
        "what a full table does not name is gone",
        "engine.py",
        "for key in sorted(neighbour.learned - neighbour.confirmed):",
        "for key in ():",
    ),
    Mutant("adverts are applied in order", "engine.py", "if not is_next:", "if False:"),
    Mutant("what is not acknowledged is sent again", "neighbour.py", "if entry.due_at() <= now:", "if False:"),
    Mutant(
        "a neighbour that never acknowledges gets the full table",
        "neighbour.py",
        "if entry.tries >= RESYNC_AFTER_TRIES:",
        "if False:",
    ),
    Mutant(
        "news is coalesced",
        "engine.py",
        "return self._options.coalesce_s * self._random.uniform(0.5, 1.0)",
        "return 0.0",
    ),
    Mutant(
        "a withdrawal that leaves no way goes at once",
        "engine.py",
        "if is_awaited or not learned.best:\n            delay_s = 0.0",
        "if is_awaited:\n            delay_s = 0.0",
    ),
    Mutant(
        "withdrawals are never held",
        "origin.py",
        "if offer is not None:\n            if not self.damper.may_announce(service, now):",
        "if True:\n            if not self.damper.may_announce(service, now):",
    ),
    Mutant(
        "announcements of what flaps are held",
        "origin.py",
        "if not self.damper.may_announce(service, now):",
        "if False:",
    ),
    Mutant("a loss is counted", "origin.py", "self.damper.lost(service, now)", "pass"),
    Mutant(
        "load is no flap",
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
        "release is certain",
        "damping.py",
        "return min(latest, history.at + self.policy.half_life_s * math.log2(history.penalty / self.policy.reuse))",
        "return history.at + 1e9",
    ),
    Mutant("penalties decay", "damping.py", "history.penalty * 2.0 **", "history.penalty * 1.0 **"),
    Mutant(
        "what is released is told",
        "engine.py",
        'self._note(now, service, "let out")\n            self._mark((self.router, service), now)',
        'self._note(now, service, "let out")',
    ),
    Mutant("a dry run holds nothing", "damping.py", "return self.policy.dry_run", "return False"),
    Mutant(
        "costs have hysteresis",
        "metric.py",
        "if abs(cost_us - self.cost_us) <= SIGNIFICANT_CHANGE * self.cost_us:",
        "if cost_us == self.cost_us:",
    ),
    Mutant(
        "a change must last", "metric.py", "if self._away < INTERVALS_BEFORE_CHANGE and not was_guess:", "if False:"
    ),
    Mutant("metrics add up", "metric.py", "return min(UNREACHABLE_US, metric_us + cost_us)", "return metric_us"),
    Mutant("instances are aggregated", "origin.py", "len(instances).bit_length() - 1", "len(instances)"),
    Mutant("policies filter what is believed", "belief.py", "if not neighbour.policy.takes(announce):", "if False:"),
    Mutant("policies filter what is told", "exports.py", "or not neighbour.policy.tells(found, is_own=is_own)", ""),
    Mutant(
        "only the best is told under that policy",
        "exports.py",
        "if neighbour.policy.export is Export.BEST and",
        "if False and",
    ),
    Mutant(
        "routes of one neighbour are bounded",
        "belief.py",
        "len(neighbour.learned) >= limits.MAX_ROUTES_PER_NEIGHBOUR",
        "False",
    ),
    Mutant(
        "expired routes are left out", "lookup.py", "if route.expires_at is None or route.expires_at > now", "if True"
    ),
    Mutant(
        "two choices among near equals",
        "lookup.py",
        "leader = second if outstanding(second.key) < outstanding(first.key) else first",
        "leader = best",
    ),
    Mutant("a draining node withdraws everything", "engine.py", "self._origin.is_withdrawn = True", "pass"),
    Mutant("a draining node is no way to others", "exports.py", "if self._origin.is_withdrawn:", "if False:"),
    Mutant(
        "it says so at once",
        "engine.py",
        "for key in self._known.ways:\n                    self._mark(key, now)",
        "pass",
    ),
)


def tested(mutant: Mutant, place: Path) -> str:
    """Run the tests against one mutant in a copy of the tree; the name of the first that fails, empty for none."""
    target = place / "micro_core" / "routing" / mutant.file
    right = (ROOM / mutant.file).read_text()
    if right.count(mutant.old) < 1:
        raise SystemExit(f"{mutant.file} does not hold {mutant.old!r} any more: mend the mutant «{mutant.rule}»")
    target.write_text(right.replace(mutant.old, mutant.new))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *TESTS],
            cwd=place,
            capture_output=True,
            text=True,
            check=False,
        )
    finally:
        target.write_text(right)
    failed = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1):
        raise SystemExit(f"the tests did not run under «{mutant.rule}»:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return failed.group(1) if failed else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="mutants whose rule contains this")
    parser.add_argument("--first", type=int, default=1, help="the number of the mutant to begin with")
    chosen = parser.parse_args()
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="micro-mutants-") as made:
        place = Path(made)
        for name in ("micro_core", "tests"):
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "conftest.py", "README.md"):
            shutil.copy(ROOT / name, place / name)
        for mutant in MUTANTS[chosen.first - 1 :]:
            if chosen.only not in mutant.rule:
                continue
            caught_by = tested(mutant, place)
            survivors += not caught_by
            sys.stdout.write(f"{'caught  ' if caught_by else 'SURVIVED'}  {mutant.rule:<56} {caught_by}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{survivors} survived\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
