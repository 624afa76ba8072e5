"""Mutation tests: break each rule on purpose and show which test fails. Run by `make mutants`.

Each mutant replaces one piece of code in a copy of the tree. The tests of its area then run until one fails. A mutant that
no test detects survives: a test is missing. The tests must pass on the unchanged copy, so a mutant is never caught by a
test that fails anyway.

    cd tools && python -m mutants [--area NAME] [--only TEXT] [--processes N]

Exit codes: 0 all mutants were caught, 1 a mutant survived, a test fails without a mutant or does not end, 2 a mutant does not
match the code and must be adapted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from mutants import brokers, calls, damping, links, messages, rates, routing, suspension, topology
from mutants.mutant import Area, Mutant
from mutants.runner import ROOT, RunError, Runner

AREAS = (
    routing.AREA,
    rates.AREA,
    damping.AREA,
    topology.AREA,
    links.AREA,
    suspension.AREA,
    calls.AREA,
    messages.AREA,
    brokers.AREA,
)


def outdated(mutants: list[tuple[Area, Mutant]]) -> list[str]:
    """Return what to adapt: the mutants whose code does not exist exactly once as it is written in them."""
    found = []
    for area, mutant in mutants:
        path = ROOT / area.folder / mutant.file
        count = path.read_text().count(mutant.old) if path.exists() else 0
        if count != 1:
            found.append(f"{area.name}: mutant «{mutant.rule}»: {mutant.file} contains {count} times {mutant.old!r}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--area", choices=[area.name for area in AREAS], help="run only the mutants of one area")
    parser.add_argument("--only", default="", metavar="TEXT", help="run only the mutants whose rule contains TEXT")
    parser.add_argument("--processes", type=int, default=2, metavar="N", help="number of mutants tested at once")
    options = parser.parse_args()
    every = [(area, mutant) for area in AREAS for mutant in area.mutants]
    if problems := outdated(every):
        sys.stderr.write("\n".join(problems) + "\n")
        return 2
    chosen = [one for one in every if options.area in {None, one[0].name} and options.only in one[1].rule]
    survivors, began_at = 0, time.monotonic()
    with (
        tempfile.TemporaryDirectory(prefix="micro-mutants-") as directory,
        ThreadPoolExecutor(options.processes) as pool,
    ):
        runner = Runner(Path(directory), copies=options.processes)
        running = {pool.submit(runner.test, area, mutant): (area, mutant) for area, mutant in chosen}
        try:
            for done in as_completed(running):
                area, mutant = running[done]
                try:
                    failed_test, seconds = done.result()
                except RunError as error:
                    failed_test, seconds = "", 0.0
                    sys.stderr.write(f"{area.name}: mutant «{mutant.rule}»: {error}\n")
                survivors += not failed_test
                result = "caught  " if failed_test else "SURVIVED"
                sys.stdout.write(f"{result} {seconds:4.0f} s  {area.name:<10}  {mutant.rule:<64} {failed_test}\n")
                sys.stdout.flush()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    sys.stdout.write(f"{len(chosen)} mutants in {time.monotonic() - began_at:.0f} s, {survivors} not caught\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
