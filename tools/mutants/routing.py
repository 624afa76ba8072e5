"""The rules of the routing engine: feasibility, sequence numbers, leases, lists of offers, policies."""

from __future__ import annotations

from mutants.mutant import Area, Mutant

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
        "an infeasible route is requested when the feasible ones are suspect",
        "engine.py",
        "                effects += self._requester.endangered(entry, now)",
        "                pass",
    ),
    Mutant(
        "requests are forwarded around suspect next hops",
        "seqno_requests.py",
        " and not self._neighbours[entry.selected].is_suspect",
        "",
    ),
    Mutant(
        "requests are forwarded",
        "seqno_requests.py",
        "            self._neighbours[peer].request_seqno(forwarded)",
        "            pass",
    ),
    Mutant(
        "an origin answers a request with a later sequence number",
        "engine.py",
        "                self._own_seqno_received(request.seqno, now, is_requested=True)\n                neighbour",
        "                neighbour",
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
    Mutant(
        "a lease ends",
        "engine.py",
        '                    self._receiver.remove_candidate(entry, neighbour, "its lease expired", now, effects)',
        "                    pass",
    ),
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
    Mutant("metrics add up", "metric.py", "return min(UNREACHABLE_US, metric_us + cost_us)", "return metric_us"),
)

TESTS = (
    (
        "tests/routing/test_engine_selection.py",
        "tests/routing/test_engine_exchange.py",
        "tests/routing/test_engine_offers.py",
        "tests/routing/test_engine_site.py",
        "tests/routing/test_first_routes.py",
        "tests/routing/test_newer_seqnos.py",
        "tests/routing/test_offers_along_routes.py",
        "tests/routing/test_full_tables.py",
    ),
    ("tests/routing/test_network_of_engines.py", "tests/routing/test_storms.py"),
    ("tests/routing",),
    ("tests/lab/test_explanations.py", "tests/lab/test_policies.py", "tests/lab/test_soak.py"),
)
"""Groups of tests of the routing engine."""

AREA = Area(name="routing", folder="micro_core/routing", tests=TESTS, mutants=MUTANTS)
