"""The rules by which nodes find, choose, exchange and give up links, and when a link begins to carry routes."""

from __future__ import annotations

from mutants.mutant import Area, Mutant

MUTANTS = (
    Mutant(
        "a node that was linked by its own dial is not counted as a dial in progress",
        "peer_plan.py",
        "if node.id in owners and not node.is_linked]",
        "if node.id in owners]",
    ),
    Mutant(
        "a successful dial is no longer in progress",
        "peers.py",
        "        self.table.end_attempt(event.address)\n        given_up",
        "        given_up",
    ),
    Mutant(
        "an attempt without an outcome fails",
        "peers.py",
        "if now >= address.tried_at + MAX_ATTEMPT_S:",
        "if False:",
    ),
    Mutant("unreachable nodes are linked", "peer_plan.py", "*self._reconnect(now), ", ""),
    Mutant("unreachable nodes are probed for ever", "peer_plan.py", ", *self._pace(now)]", "]"),
    Mutant(
        "one unreachable node per site is dialled at once",
        "peer_plan.py",
        "if any(self._is_dialled(other) for other in lost if other.site == node.site):",
        "if False:",
    ),
    Mutant(
        "a node must be unreachable for a while",
        "peer_plan.py",
        "grace = node.unreachable_since + GRACE_S",
        "grace = 0.0",
    ),
    Mutant("resolvers are queried when a node is lost", "peers.py", "if any(lost):", "if False:"),
    Mutant(
        "only the seeds are linked if no links are wanted",
        "peer_plan.py",
        "if not self._options.is_static:",
        "if True:",
    ),
    Mutant(
        "links go to distinct sites first",
        "link_targets.py",
        "[node for node in pool if node.site not in used_sites]",
        "pool",
    ),
    Mutant(
        "near nodes are linked first",
        "link_targets.py",
        "limit_s = _rtt_s(best[0]) * SIMILAR_RATIO + SIMILAR_S",
        "limit_s = 1e9",
    ),
    Mutant(
        "one of several equally near nodes is chosen at random",
        "link_targets.py",
        "return similar[random.randrange(0, len(similar))], False",
        "return similar[0], False",
    ),
    Mutant(
        "one link of a large network is random",
        "link_targets.py",
        "if is_last and not side.is_own_site and site_count > 2 * side.wanted:",
        "if False:",
    ),
    Mutant("a random link is not exchanged", "link_targets.py", "        and not node.is_random\n", ""),
    Mutant(
        "a link is exchanged only for a clearly nearer node",
        "link_targets.py",
        "limit_s = min(_rtt_s(worst) * EXCHANGE_RATIO, _rtt_s(worst) - MIN_EXCHANGE_S)",
        "limit_s = _rtt_s(worst) - 1e-9",
    ),
    Mutant(
        "the last link to a site is not exchanged",
        "link_targets.py",
        "is_spare = sites[worst.site] > 1 or worst.site in well_linked",
        "is_spare = True",
    ),
    Mutant(
        "the only link of a node is not given up",
        "link_targets.py",
        "        and len(node.neighbours) >= MIN_DEGREE\n",
        "",
    ),
    Mutant(
        "links above the wanted number are given up",
        "link_targets.py",
        "if len(linked) <= wanted + SURPLUS or not dialled:",
        "if True:",
    ),
    Mutant(
        "the only link to a site is not evicted",
        "link_targets.py",
        "spare = [node for node in accepted if sites[node.site] > 1]",
        "spare = accepted",
    ),
    Mutant("accepted links are bounded", "link_targets.py", "    if len(linked) <= max_links:", "    if True:"),
    Mutant(
        "a node that closed its link is not dialled",
        "peers.py",
        "declining.declined, declining.declined_until = reason, now + DECLINED_S",
        "pass",
    ),
    Mutant(
        "a link that flaps is dialled ever later",
        "peers.py",
        "REDIAL_S * 2 ** min(node.flaps, 10)",
        "REDIAL_S",
    ),
    Mutant(
        "a resumed node tries all addresses at once",
        "peers.py",
        "                self._resumed(now)\n",
        "                pass\n",
    ),
    Mutant("probes at once are bounded", "peer_plan.py", "free = limit - len(", "free = 1000 - len("),
    Mutant(
        "links that are dialled at once are bounded",
        "peer_plan.py",
        "limit = MAX_DIALS if kind is Attempt.LINK else MAX_PROBES",
        "limit = 1000",
    ),
    Mutant("known nodes are bounded", "peer_table.py", "if len(self.nodes) >= MAX_NODES and not", "if False and not"),
    Mutant("candidates are bounded", "peer_table.py", "candidates[:MAX_CANDIDATES]", "candidates"),
    Mutant("addresses of a record are bounded", "peer_table.py", "texts[:MAX_ADDRESSES_PER_NODE]", "texts"),
    Mutant(
        "an answer counts more than a statement",
        "peer_table.py",
        "if not address.owner and not address.is_own:",
        "if not address.is_own:",
    ),
    Mutant("the own address is not probed again", "peer_table.py", " and not self.is_own and ", " and "),
    Mutant("a link waits for its first measurement", "adverts.py", "if link.path_rtt_s is None:", "if False:"),
    Mutant(
        "messages on an unmeasured link are bounded",
        "adverts.py",
        "if len(unmeasured.held) > MAX_HELD_MESSAGES or unmeasured.held_bytes > MAX_HELD_BYTES:",
        "if False:",
    ),
    Mutant(
        "links inside the own site are wanted", "peer_plan.py", "Side(True, self._options.links_site,", "Side(True, 0,"
    ),
    Mutant(
        "links to other sites are wanted", "peer_plan.py", "Side(False, self._options.links_remote,", "Side(False, 0,"
    ),
    Mutant(
        "links inside the own site and to other sites are counted separately",
        "peer_plan.py",
        "sum(1 for node in nodes if (node.site == self._site) is is_own_site)",
        "sum(1 for node in nodes)",
    ),
    Mutant(
        "links in progress count as present",
        "link_targets.py",
        "self.wanted - self.open - self.in_progress",
        "self.wanted - self.open",
    ),
    Mutant(
        "another link to a lost site waits for the routes over the first one",
        "peer_plan.py",
        "hold_site = self.hold_sites.get(node.site, 0.0)",
        "hold_site = 0.0",
    ),
    Mutant(
        "another link to lost nodes waits for the routes over the first one",
        "peer_plan.py",
        "node.reconnect_at, self.hold_until, hold_site",
        "node.reconnect_at, hold_site",
    ),
    Mutant(
        "the nodes of a site do not all link to a lost node at once",
        "peers.py",
        "node.reconnect_at = now + self._random.uniform(0.0, SPREAD_S)",
        "pass",
    ),
    Mutant(
        "an exchange makes the new link first",
        "peer_plan.py",
        "                return [dial]\n",
        "                return [self.unlink(found[0], 'exchanged'), dial]\n",
    ),
    Mutant(
        "a failed exchange gives up no link",
        "peers.py",
        "                self._planner.exchanges.pop(address, None)\n                self._failed(address, reason",
        "                self._failed(address, reason",
    ),
    Mutant(
        "an exchange for a node that was linked meanwhile gives up no link",
        "peers.py",
        " or event.was_linked or node is None",
        " or node is None",
    ),
    Mutant(
        "the links of seeds are not given up",
        "link_targets.py",
        "        and not any(address.is_seed for address in node.addresses.values())\n",
        "",
    ),
    Mutant(
        "accepted links are not exchanged",
        "link_targets.py",
        "        and node.link.address is not None\n        and not node.is_random",
        "        and not node.is_random",
    ),
    Mutant(
        "a site needs other links of its own before its only link to this node is closed",
        "link_targets.py",
        "if count > MIN_OUTWARD)",
        "if count > 0)",
    ),
    Mutant(
        "the number of only links to sites is bounded",
        "link_targets.py",
        "if len(linked) > 2 * max_links and accepted:",
        "if False:",
    ),
    Mutant(
        "an unreachable node is tried soon, whatever its pause is",
        "peers.py",
        "        self._retry_soon(node, now)\n        return True",
        "        return True",
    ),
    Mutant(
        "a link that the peer gives up is replaced before it ends",
        "peers.py",
        "                        declining.link.is_closing = True",
        "                        pass",
    ),
    Mutant(
        "the end of a link that was given up is not a flap",
        "peers.py",
        " and not node.link.is_closing\n",
        "\n",
    ),
    Mutant(
        "the end of a link that was given up is not damped",
        "adverts.py",
        "is_graceful=link.is_closing",
        "is_graceful=False",
    ),
    Mutant(
        "both ends drain a link that one of them gives up",
        "network.py",
        '                self._tunnel.drain(peer, LinkLost(f"the peer has given up the link: {reason}"))\n',
        "",
    ),
)

AREA = Area(
    name="topology",
    folder="micro_core/network",
    tests=(
        ("tests/network/test_peers.py", "tests/network/test_link_targets.py"),
        ("tests/network/test_unmeasured_links.py", "tests/network/test_peers_network.py"),
        ("tests/lab/test_given_up_links.py",),
    ),
    mutants=MUTANTS,
)
