"""The rules that bound the number of routing messages: slow clocks, requests, thresholds, and what is exempt."""

from __future__ import annotations

from mutants.mutant import Area, Mutant
from mutants.routing import TESTS

MUTANTS = (
    Mutant(
        "requests because of a better route are limited",
        "seqno_requests.py",
        "if now < may_ask_at:",
        "if False:",
    ),
    Mutant(
        "a better route that may not be requested yet is requested later",
        "seqno_requests.py",
        "            state.retry_at = min(state.retry_at, may_ask_at)\n",
        "",
    ),
    Mutant(
        "requests because of suspect next hops are limited",
        "seqno_requests.py",
        "now - state.endangered_at < ENDANGERED_RETRY_S",
        "False",
    ),
    Mutant(
        "an unanswered request is repeated",
        "seqno_requests.py",
        "            state.retry_at = now + state.retry_s\n",
        "",
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
        "the own sequence number is raised once per second",
        "engine.py",
        "now - self._raised_at < MIN_RAISE_INTERVAL_S or ",
        "",
    ),
    Mutant(
        "adverts in flight are bounded",
        "neighbour.py",
        "return self.has_begun and len(self._in_flight) < MAX_IN_FLIGHT",
        "return self.has_begun",
    ),
    Mutant(
        "a route that returns unchanged is advertised to those that lost it",
        "advertiser.py",
        "            self._schedule_returned(entry, selected, now)\n",
        "",
    ),
    Mutant(
        "changes that waited for the window are sent when it opens",
        "neighbour.py",
        "        if len(self._in_flight) >= MAX_IN_FLIGHT:\n            # Changes",
        "        if False:\n            # Changes",
    ),
    Mutant(
        "a seqno request is sent at once",
        "neighbour.py",
        "        self.requests[request.origin] = request\n        self.due_at = -NEVER\n",
        "        self.requests[request.origin] = request\n",
    ),
    Mutant(
        "many adverts are acknowledged at once",
        "neighbour.py",
        "        if self._unacknowledged >= MAX_UNACKNOWLEDGED:\n            self.due_at = -NEVER\n",
        "",
    ),
    Mutant(
        "adverts are acknowledged in time",
        "neighbour.py",
        "            self.due_at = min(self.due_at, self.ack_at)\n",
        "",
    ),
    Mutant(
        "a requested full table is sent",
        "neighbour.py",
        "        self.full_at = when\n        self.due_at = min(self.due_at, when)\n",
        "        self.full_at = when\n",
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
        "            self.schedule_slow(entry, now)\n        else:",
        "            self.schedule(entry.origin, now)\n        else:",
    ),
    Mutant(
        "unrequested sequence numbers are not sent",
        "advertiser.py",
        "            if not entry.has_newer_seqno():\n                return",
        "            self.schedule_slow(entry.origin, now)",
    ),
    Mutant(
        "requested sequence numbers are sent",
        "advertiser.py",
        "for peer in self._requester.answered(entry):",
        "for peer in ():",
    ),
    Mutant(
        "changes of offers are not sent to neighbours with a route of their own",
        "advertiser.py",
        "if _is_informed_elsewhere(entry, adjacency) or (not is_whole and",
        "if (not is_whole and",
    ),
    Mutant(
        "a neighbour with a part of the list is informed",
        "advertiser.py",
        "if offers is None or not adjacency.path or adjacency.is_partial:",
        "if offers is None or not adjacency.path:",
    ),
    Mutant(
        "a neighbour that has lost its route is informed",
        "receiver.py",
        'self.remove_candidate(entry, neighbour, "withdrawn by the neighbour", now, effects)\n'
        "        self.advertiser.neighbour_lost_route(entry, neighbour, now)",
        'self.remove_candidate(entry, neighbour, "withdrawn by the neighbour", now, effects)',
    ),
    Mutant(
        "changes since the version of the neighbour",
        "advertiser.py",
        "adjacency.advertised_list, adjacency.advertised_version, adjacency.advertised_view = offers, version, None",
        "pass",
    ),
    Mutant(
        "a version of another incarnation is not used",
        "advertiser.py",
        "offers.incarnation != incarnation or version > offers.version",
        "version > offers.version",
    ),
    Mutant(
        "a version that was not yet seen is not used",
        "advertiser.py",
        "offers.incarnation != incarnation or version > offers.version",
        "offers.incarnation != incarnation",
    ),
    Mutant(
        "the router with the larger id sends its full table second",
        "engine.py",
        "neighbour.schedule_full_table(now if self.router < peer else now + FULL_TABLE_WAIT_S)",
        "neighbour.schedule_full_table(now)",
    ),
    Mutant(
        "it sends it when that of its neighbour is complete",
        "receiver.py",
        "        if advert.ends and not neighbour.has_begun:\n            neighbour.schedule_full_table(now)\n",
        "",
    ),
    Mutant(
        "and nothing before",
        "neighbour.py",
        "return self.has_begun and len(self._in_flight) < MAX_IN_FLIGHT",
        "return len(self._in_flight) < MAX_IN_FLIGHT",
    ),
    Mutant(
        "a service that returned before its removal was received is advertised",
        "receiver.py",
        "if offers.version > version and not merged:",
        "if False:",
    ),
    Mutant(
        "a new next hop gets the withdrawal at once",
        "advertiser.py",
        "            self._schedule_withdrawal_from_next_hop(entry, now)\n",
        "",
    ),
    Mutant(
        "a list is sent again after a while",
        "advertiser.py",
        "now - adjacency.lost_at > KEEP_ADVERTISED_S",
        "False",
    ),
    Mutant(
        "a list that was not sent again is not in the digest",
        "advertiser.py",
        "if adjacency.advertised_list is None or not adjacency.is_list_advertised:",
        "if adjacency.advertised_list is None:",
    ),
    Mutant(
        "a list that was not received again is not in the digest",
        "receiver.py",
        "adjacency.announce_checksum = adjacency.list_checksum = 0\n        if withdraw.version",
        "adjacency.announce_checksum = 0\n        if withdraw.version",
    ),
    Mutant(
        "a version is named only of the newest incarnation",
        "rib_entry.py",
        "if offers is None or not offers.is_settled or offers.incarnation != self.newest_seqno[0]:",
        "if offers is None or not offers.is_settled:",
    ),
    Mutant(
        "a later own sequence number becomes a later incarnation",
        "origin.py",
        "if incarnation == self.incarnation and is_requested:",
        "if incarnation == self.incarnation:",
    ),
    Mutant(
        "the own sequence number raises nothing",
        "origin.py",
        "if not is_requested and seqno == self.seqno:",
        "if False:",
    ),
    Mutant(
        "a newer sequence number goes along with other changes",
        "rib_entry.py",
        "not self.has_newer_seqno() and not self.differs_from_export(costs)",
        "not self.differs_from_export(costs)",
    ),
    Mutant(
        "a changed alternative that is better is selected",
        "rib_entry.py",
        "if total_us < (selected.metric_us + costs[self.selected]) * (1 - SIGNIFICANT_CHANGE):\n                return False",
        "if False:\n                return False",
    ),
    Mutant(
        "an infeasible alternative is not installed",
        "rib_entry.py",
        "            if self.is_feasible(changed):\n                changed.is_installed = True",
        "            if True:\n                changed.is_installed = True",
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
        "a change of load is not a flap",
        "origin.py",
        "(own.offer.versions, own.offer.capacity) != (offer.versions, offer.capacity)",
        "own.offer != offer",
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
        "origins of one neighbour are bounded",
        "receiver.py",
        " or neighbour.received_count >= limits.MAX_ORIGINS_PER_NEIGHBOUR:",
        ":",
    ),
    Mutant(
        "remembered origins are bounded",
        "receiver.py",
        "is_full = entry is None and len(rib.entries) >= limits.MAX_ORIGINS",
        "is_full = False",
    ),
    Mutant(
        "offers of one neighbour are bounded",
        "offer_list.py",
        "            if max_added <= 0:",
        "            if False:",
    ),
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
    Mutant(
        "a withdrawal is sent at once",
        "advertiser.py",
        "self._schedule_advertised(entry, now + self._relay_s() if entry.has_candidates() else now)",
        "self._schedule_advertised(entry, now + self._options.slow_s)",
    ),
    Mutant(
        "a first route is advertised at once",
        "advertiser.py",
        "            self._schedule_first(entry, selected, now)\n",
        "            self.schedule_slow(entry.origin, now)\n",
    ),
    Mutant(
        "a neighbour with a route needs no other at once",
        "advertiser.py",
        "if peer not in selected.path and not has_route:",
        "if peer not in selected.path:",
    ),
    Mutant(
        "the requests for one origin have a minimum interval",
        "seqno_requests.py",
        "or now >= state.asked_at + RETRY_S:",
        "or True:",
    ),
    Mutant(
        "repeated requests become rarer",
        "seqno_requests.py",
        "state.retry_s = min(MAX_RETRY_S, 2 * state.retry_s)",
        "state.retry_s = RETRY_S",
    ),
    Mutant(
        "a neighbour is asked again only after the interval",
        "seqno_requests.py",
        " if one.path and peer not in state.asked]",
        " if one.path]",
    ),
)

AREA = Area(name="rates", folder="micro_core/routing", tests=TESTS, mutants=MUTANTS)
