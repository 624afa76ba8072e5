"""The rules by which a link is measured, suspected, declared dead or replaced."""

from __future__ import annotations

from mutants.mutant import Area, Mutant

MUTANTS = (
    Mutant(
        "an unanswered ping makes a link suspect",
        "keepalive.py",
        "if quality.check_suspect(now, self.lag_s()):",
        "if False:",
    ),
    Mutant(
        "anything that arrives ends the suspicion",
        "keepalive.py",
        "            self.quality.is_suspect = False\n            self._link.peer_suspect(False)",
        "            pass",
    ),
    Mutant(
        "the lag of the own event loop delays the suspicion",
        "measure.py",
        "now < suspect_at + lag_s",
        "now < suspect_at",
    ),
    Mutant(
        "a missing ping of the peer makes the suspicion sooner",
        "measure.py",
        "SUSPECT_AFTER_SILENT_KEEPALIVES if self.is_silent(now) else ",
        "",
    ),
    Mutant(
        "a link is not suspect before an answer can arrive",
        "measure.py",
        "max(intervals * self.keepalive_s, usual_s)",
        "intervals * self.keepalive_s",
    ),
    Mutant("a silent link is dead", "keepalive.py", "if quality.is_dead(now):", "if False:"),
    Mutant(
        "a stop of this process does not mean that the peer is dead",
        "measure.py",
        "if self._checked_at is not None and now - self._checked_at > 2 * self.keepalive_s:",
        "if False:",
    ),
    Mutant(
        "the lag of event loops is not measured",
        "measure.py",
        "return min(sample_s, max(sample_s - lag_s, self.path_rtt_s))",
        "return sample_s",
    ),
    Mutant(
        "one late answer does not move the cost",
        "measure.py",
        "path_rtt_s = min(self._samples)",
        "path_rtt_s = self._samples[-1]",
    ),
    Mutant(
        "a slower path is not counted as a queue, too",
        "measure.py",
        "self.queue_delay_s = max(0.0, self.queue_delay_s - max(0.0, path_rtt_s - self.path_rtt_s))",
        "pass",
    ),
    Mutant("samples of the peer are bounded", "measure.py", "min(MAX_RTT_S, rtt_s)", "rtt_s"),
    Mutant(
        "the ends of a calm link take turns", "keepalive.py", "(self._is_turn(now) or quality.is_silent(now))", "True"
    ),
    Mutant("one end pings without acknowledgements", "keepalive.py", "return self._dialed", "return True"),
    Mutant(
        "pings that have crossed do not shift the turns",
        "keepalive.py",
        "if now - self._pinged_at < half_s + self._interval_s / 2 and not self._dialed:",
        "if False:",
    ),
    Mutant(
        "an end does not wait for its turn to confirm a change", "keepalive.py", " or not self.quality.is_settled", ""
    ),
    Mutant("an acknowledgement answers a ping", "keepalive.py", "return not token & ACKNOWLEDGED", "return True"),
    Mutant(
        "a late acknowledgement does not count before the lag of the peer is known",
        "measure.py",
        "if self.path_rtt_s is None or (sample_s > self.path_rtt_s and not self._agrees(sample_s)):",
        "if False:",
    ),
    Mutant(
        "an old sample is not reported",
        "measure.py",
        "sample_s if now - self._unreported_at <= MAX_REPORT_AGE_KEEPALIVES * self.keepalive_s else None",
        "sample_s",
    ),
    Mutant(
        "the outcome of a dial is reported once",
        "reconnector.py",
        "if is_racing and isinstance(event, AttemptSucceeded | LinkedElsewhere):",
        "if isinstance(event, AttemptSucceeded | LinkedElsewhere):",
    ),
    Mutant(
        "a dial that finds the node linked is reported",
        "reconnector.py",
        "if is_racing and isinstance(event, AttemptSucceeded | LinkedElsewhere):",
        "if is_racing and isinstance(event, AttemptSucceeded):",
    ),
    Mutant(
        "a dial that finds the node linked is reported as such",
        "reconnector.py",
        "self._on_success(self._peer_id, isinstance(event, LinkedElsewhere))",
        "self._on_success(self._peer_id, False)",
    ),
    Mutant(
        "a dial whose driver raises an unexpected error has an outcome",
        "reconnector.py",
        "            self._events.put_nowait((AttemptFailed(path, unexpected), None))",
        "            pass",
    ),
    Mutant(
        "an address without a driver has an outcome",
        "dialer.py",
        "            asyncio.get_running_loop().call_soon(self._dial_failed, address, error)\n",
        "",
    ),
    Mutant(
        "a link that is given up carries calls while others take over",
        "gradual_end.py",
        "self._call_later(DRAIN_S, self._drained, error)",
        "self._drained(error)",
    ),
    Mutant(
        "a link that is given up is avoided by new calls",
        "gradual_end.py",
        "            self._link.closing_started()\n",
        "",
    ),
    Mutant(
        "a retired link ends after its last call",
        "gradual_end.py",
        "if is_used and remaining_s > 0:",
        "if False:",
    ),
    Mutant(
        "calls on a retired link are bounded",
        "gradual_end.py",
        "if is_used and remaining_s > 0:",
        "if is_used:",
    ),
    Mutant(
        "a link that is given up is suspect",
        "link.py",
        "is_suspect=quality.is_suspect or self.ending.is_closing,",
        "is_suspect=quality.is_suspect,",
    ),
    Mutant(
        "a link that is given up is drained for a limited time",
        "gradual_end.py",
        "self._call_later(DRAIN_S, self._drained, error)",
        "pass",
    ),
    Mutant(
        "sessions of control data do not keep a retired link",
        "link.py",
        "session.priority is not Priority.CONTROL for session",
        "session.priority is not None for session",
    ),
    Mutant(
        "a link that ends in use is counted",
        "gradual_end.py",
        "        if is_used:\n            self._counters",
        "        if False:\n            self._counters",
    ),
    Mutant(
        "the stop of a node is not a loss of its links",
        "tunnel.py",
        "            link.ending.is_closing = True\n",
        "",
    ),
)

AREA = Area(
    name="links",
    folder="micro_core/tunnel",
    tests=(
        ("tests/tunnel/test_measure.py", "tests/tunnel/test_keepalive.py"),
        ("tests/tunnel",),
        ("tests/lab/test_given_up_links.py", "tests/lab/test_rolling_restart.py"),
    ),
    mutants=MUTANTS,
)
