"""The rules by which messages go to other sites: one leader per site, one copy per site, nothing lost or doubled."""

from __future__ import annotations

from mutants.mutant import Area, Mutant

MUTANTS = (
    Mutant("the own site gets no copy", "site_leaders.py", " or route.site == own_site:", ":"),
    Mutant(
        "the leader of another site has the smallest id", "site_leaders.py", " or route.router < leader.router:", ":"
    ),
    Mutant(
        "the leader of the own site has the smallest id", "site_leaders.py", "        and route.router < node_id\n", ""
    ),
    Mutant(
        "a default route leads to no leader",
        "site_leaders.py",
        "        and route.service != ANY_SERVICE\n        and route.site == own_site",
        "        and route.site == own_site",
    ),
    Mutant("only the leader sends", "handover.py", "(not self._has_lesser or now < self._sends_until)", "True"),
    Mutant("a former leader sends for a while", "handover.py", " or now < self._sends_until)", ")"),
    Mutant("kept messages expire", "handover.py", "        self._forget(now - KEEP_S)\n", ""),
    Mutant(
        "kept messages are bounded",
        "handover.py",
        "while len(self._kept) > MAX_KEPT or self._kept_bytes > MAX_KEPT_BYTES:",
        "while False:",
    ),
    Mutant(
        "a node that stalled does not send", "handover.py", "if stalled_s > STALL_S and self._has_others:", "if False:"
    ),
    Mutant("messages of a long stall are dropped", "handover.py", "if stalled_s > MAX_STALL_S:", "if False:"),
    Mutant(
        "a new leader sends the kept messages", "topics.py", "        for kept in due:", "        for kept in due[:0]:"
    ),
    Mutant("messages of other sites do not return", "topics.py", "if DELIVERED_BY in message.headers:", "if False:"),
    Mutant("copies are dropped", "topics.py", " if self._duplicates.is_first(header.id, target, now)]", "]"),
    Mutant(
        "a message for another leader of the site is passed on",
        "topics.py",
        "if leader and header.hops_left > 0:",
        "if False:",
    ),
    Mutant(
        "repeated deliveries are published once",
        "deliveries.py",
        "if self._delivered.is_known(message.id, topic):",
        "if False:",
    ),
    Mutant(
        "messages that wait for the broker are bounded",
        "deliveries.py",
        "if len(self._waiting) >= MAX_WAITING:",
        "if False:",
    ),
    Mutant("only the leader subscribes for other sites", "durable_topics.py", " if is_leader else {}", ""),
    Mutant(
        "each site has messages of its own", "durable_topics.py", 'group=f"micro-site-{site}"', 'group="micro-site"'
    ),
    Mutant(
        "a message that a site refuses is not repeated",
        "durable_topics.py",
        "if isinstance(error, _PERMANENT) or internal_errors",
        "if internal_errors",
    ),
    Mutant(
        "a delivery that fails with internal errors is not repeated for ever",
        "durable_topics.py",
        " or internal_errors >= MAX_INTERNAL_ERRORS:",
        ":",
    ),
    Mutant(
        "a delivery that failed is repeated",
        "durable_topics.py",
        '                self._counters.add("topics_deliveries_retried")\n',
        '                self._counters.add("topics_deliveries_retried")\n                return\n',
    ),
    Mutant(
        "copies are remembered by target",
        "duplicate_filter.py",
        "        key = (message_id, target)\n        if key in self._current or",
        '        key = (message_id, "")\n        if key in self._current or',
    ),
    Mutant(
        "the leader of a site follows the routes",
        "topics.py",
        "        if routes is not self._node_routes:",
        "        if self._node_routes is None:",
    ),
    Mutant(
        "each interested site gets one copy",
        "site_leaders.py",
        "        site = route.site or route.router\n",
        "        site = route.router\n",
    ),
    Mutant(
        "one copy goes along each next hop",
        "topics.py",
        "            self._send_to(gateway, header._replace(targets=tuple(through)), body)",
        "            for one in through:\n                self._send_to(gateway, header._replace(targets=(one,)), body)",
    ),
    Mutant(
        "all nodes of a site know what others have published",
        "topics.py",
        "            self._duplicates.is_first(message.id, self._node_id, self._clock.now())\n",
        "",
    ),
    Mutant(
        "a copy that the site may have received is dropped",
        "topics.py",
        "elif header.age_ms and not",
        "elif False and not",
    ),
    Mutant(
        "copies that are not sent again are always published",
        "topics.py",
        "elif header.age_ms and not",
        "elif not",
    ),
    Mutant(
        "kept messages are sent with their age",
        "topics.py",
        ", age_s=now - kept.published_after)",
        ", age_s=0.0)",
    ),
    Mutant(
        "the age of a message includes the stall in which it was published",
        "handover.py",
        "self._stall_began_at if now < self.stall_ended_at + CATCH_UP_S else now",
        "now",
    ),
    Mutant(
        "a node that stalled does not know what its site has received",
        "topics.py",
        "            self._record.interrupted(now)\n",
        "            pass\n",
    ),
    Mutant(
        "a node without routes is not the leader for other sites",
        "topics.py",
        "self._record.set_leader(self.is_leader and bool(nodes), now)",
        "self._record.set_leader(self.is_leader, now)",
    ),
    Mutant(
        "a leader knows the messages of topics without subscription",
        "topics.py",
        "            self._record.set_leader(self.is_leader and bool(nodes), now)\n",
        "",
    ),
    Mutant(
        "a former leader does not know what its successor has published",
        "delivery_record.py",
        "            self._leads_since = None\n        elif",
        "            pass\n        elif",
    ),
    Mutant(
        "other sites learn a new leader with a delay",
        "delivery_record.py",
        "published_at >= self._leads_since + OVERLAP_S",
        "published_at >= self._leads_since",
    ),
    Mutant(
        "a message can be older than its sender knows",
        "delivery_record.py",
        "published_at >= subscribed_since + DELAY_S",
        "published_at >= subscribed_since",
    ),
    Mutant(
        "an ended subscription shows no messages",
        "delivery_record.py",
        "        self._subscribed_since.pop(topic, None)\n",
        "        pass\n",
    ),
    Mutant(
        "kept messages wait while the routes are outdated after a stall",
        "handover.py",
        "if has_lesser or now < self._recovered_at:",
        "if has_lesser:",
    ),
)

AREA = Area(
    name="messages",
    folder="micro_core/proxy",
    tests=(
        ("tests/proxy/test_site_leaders.py", "tests/proxy/test_deliveries.py", "tests/proxy/test_durable_topics.py"),
        ("tests/proxy/test_delivery_record.py",),
        (
            "tests/lab/test_site_messages.py",
            "tests/lab/test_messages_after_restarts.py",
            "tests/lab/test_messages_once.py",
        ),
    ),
    mutants=MUTANTS,
)
