"""The kits are tested: each of these drivers breaks one promise, and the part that demands it fails, naming the clause.

The same parts pass with the sound driver that the broken one is made from: it is the fault that they found.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent

BROKEN: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "broken_registries": {
        "Forgets": {"several_instances_and_versions_stand_side_by_side": "instances returns the live records"},
        "Reorders": {"events_of_an_instance_come_in_order": "events arrive in order"},
        "Resurrects": {"a_record_is_gone_once_it_is_deregistered_and_stays_gone": "nothing brings it back"},
        "LeaksATask": {"closing_leaves_nothing_behind": "close leaves no task running: these still do: leaked"},
        "LeaksAFile": {"closing_leaves_nothing_behind": "close leaves no file and no socket open"},
        "BlocksTheLoop": {"the_loop_is_never_blocked": "it stood still for 0."},
        "WorksWhenItIsMade": {"making_a_driver_touches_nothing_outside": "create starts no task"},
        "NeverEndsALease": {
            "a_record_that_is_not_renewed_goes_within_its_lease_and_a_second": "whose owner stops renewing disappears"
        },
        "EndsALeaseEarly": {
            "a_record_that_is_not_renewed_goes_within_its_lease_and_a_second": "stands for its whole lease",
        },
        "TellsEveryRenewal": {"an_equal_record_renews_silently": "renews silently: no event"},
        "MixesSites": {"sites_and_networks_do_not_see_each_other": "instances returns the live records"},
        "LosesMetadata": {"a_record_is_seen_by_every_registry_of_the_site": "each whole and once"},
        "WritesInHalves": {"a_record_is_whole_whenever_it_is_read": "it was half written"},
        "WritesInTwoSteps": {"a_record_is_whole_whenever_it_is_read": "it was not there"},
        "EndsLeasesByItsOwnClock": {
            "a_record_is_seen_by_every_registry_of_the_site": "instances returns the live records"
        },
        "LeavesItsRecords": {"closing_withdraws_its_own_records_and_ends_its_watches": "watch that is closed ends"},
        "HangsWatchers": {"closing_withdraws_its_own_records_and_ends_its_watches": "it still waits"},
        "HangsWhenAway": {"a_back_end_that_is_away_is_told_in_time": "Unreachable is raised in time"},
        "StumblesOverGarbage": {"garbage_hides_no_record_and_stops_no_watch": "ValueError: not JSON"},
        "SwallowsGarbage": {"garbage_hides_no_record_and_stops_no_watch": "what is dropped is counted"},
        "HasATypo": {"declared_capabilities_are_known_words": "did you mean 'watch'?"},
    },
    "broken_brokers": {
        "Duplicates": {"every_subscriber_receives_every_message_once_and_in_order": "each once, in order"},
        "Reverses": {"every_subscriber_receives_every_message_once_and_in_order": "each once, in order"},
        "LosesQueueGroups": {
            "one_member_of_a_queue_group_receives_each_message": "exactly one member receives each message"
        },
        "FavoursOneMember": {"members_of_a_queue_group_share_the_work": "no member of a queue group that keeps up"},
        "SlowsEverybody": {"a_slow_subscriber_slows_nobody_else": "never slows another down"},
        "LosesHeaders": {"a_message_arrives_whole": "headers arrive as they were"},
        "HearsAfterTheEnd": {"nothing_comes_after_unsubscribing": "nothing comes after unsubscribing"},
        "TakesAnything": {"a_message_over_the_bound_is_refused_at_once": "DID NOT RAISE"},
        "HangsWhenAway": {"a_back_end_that_is_away_is_told_in_time": "publish raises Unreachable in time"},
        "ForgetsSubscriptions": {"subscriptions_survive_a_back_end_that_was_away": "survives reconnects"},
        "OnlySaysDurable": {
            "a_message_whose_handler_failed_comes_again": "a message whose handler failed comes again",
            "what_is_published_while_no_member_is_there_waits_for_the_next": "waits for the next",
        },
        "OnlySaysWildcards": {"a_pattern_hears_the_topics_that_fit": "BadRequest"},
    },
    "broken_tables": {
        "AnswersStale": {
            "a_route_replaces_the_one_with_its_key": "never a stale one",
            "a_route_that_is_deleted_is_gone": "never a stale one",
        },
        "KeepsWhatWasDeleted": {"a_route_that_is_deleted_is_gone": "never a stale one"},
        "Unordered": {"the_best_metric_comes_first_and_keys_decide_among_equals": "best metric first"},
        "ListsUnordered": {"list_filters_and_has_a_stable_order": "ordered by service, then metric"},
        "TellsNoMetric": {"watchers_hear_of_every_change_after_it_stands_and_of_nothing_else": "of the metric too"},
        "TellsTooEarly": {"watchers_hear_of_every_change_after_it_stands_and_of_nothing_else": "after it stands"},
        "ForgetsTheLease": {"a_route_comes_back_whole": "as they were put"},
        "LosesAHop": {"every_part_of_the_key_keeps_routes_apart": "each key is a route of its own"},
        "OnlySaysPersistent": {"routes_are_back_after_a_restart": "has the routes that stood"},
    },
    "broken_sockets": {
        "SwallowsTheEnd": {
            "each_end_hears_the_right_ending_once_after_the_last_bytes": "called when the other end closed"
        },
        "TellsTheEndTwice": {"each_end_hears_the_right_ending_once_after_the_last_bytes": "called exactly once"},
        "CallsEveryEndALoss": {
            "each_end_hears_the_right_ending_once_after_the_last_bytes": "the other end hears Ended"
        },
        "NeverPausesTheWriter": {
            "a_reader_that_pauses_is_delivered_nothing_and_its_writer_pauses": "were taken without pause_writing"
        },
        "ReadsOnWhenPaused": {"reading_that_is_paused_before_the_start_stays_paused": "deliver nothing until"},
        "LosesTheFirstBytes": {"nothing_is_lost_that_comes_before_the_start": "nothing is lost that arrived"},
        "LosesTheLastBytes": {
            "each_end_hears_the_right_ending_once_after_the_last_bytes": "close sends what is queued"
        },
        "Reorders": {"small_writes_arrive_in_order": "whole and in order"},
        "SharesAPlace": {"a_place_is_listened_on_once_and_free_again_after": "DID NOT RAISE"},
        "BreaksInSilence": {"a_connection_that_breaks_is_told_as_lost_at_both_ends": "when the connection broke"},
    },
    "broken_links": {
        "HidesWhatItHolds": {
            "a_link_says_what_it_holds_and_when_there_is_room_again": "buffered_bytes: bytes accepted and not yet",
            "a_network_that_takes_nothing_fills_the_lane_and_loses_nothing": "what the network does not take",
        },
        "NeverTellsOfRoom": {
            "a_link_says_what_it_holds_and_when_there_is_room_again": "lane_writable is called once",
            "a_network_that_takes_nothing_fills_the_lane_and_loses_nothing": "when there is room again",
        },
        "TellsOfRoomAtOnce": {
            "a_lane_that_never_was_full_is_not_told_of_room": "after the lane has been above its low mark",
            "a_network_that_takes_nothing_fills_the_lane_and_loses_nothing": "not called while the lane is full",
        },
        "ReordersBytes": {"small_writes_stay_in_order": "each lane is in order"},
        "MixesLanes": {"each_lane_is_in_order_and_whole_both_ways": "each lane is in order, and whole (lane 0)"},
        "DeliversWithinTheCall": {"what_is_written_arrives_later_and_never_within_the_call": "write queues"},
        "LosesTheFirstBytes": {"nothing_is_lost_that_comes_before_the_start": "nothing is lost that arrived"},
        "NeverReportsALoss": {"a_link_that_breaks_is_told_as_lost_at_both_ends": "called when the link broke"},
        "BindsEachEndAlone": {"both_ends_share_a_channel_binding": "both ends share the channel binding"},
        "TakesAnyAddressToItself": {"a_dial_to_nobody_is_unreachable_and_says_why": "OSError: connection refused"},
        "LosesWhatWasHeld": {
            "a_network_that_takes_nothing_fills_the_lane_and_loses_nothing": "nothing is lost by a pause"
        },
    },
    "broken_resolvers": {
        "Hangs": {
            "an_answer_comes_in_time_and_in_the_order_to_try": "resolve answers, or raises Unreachable: nothing came"
        },
        "IgnoresPriority": {
            "what_the_source_holds_is_answered": "lower priority first",
            "lower_priorities_come_first": "lower priority first",
        },
        "DropsPriority": {"lower_priorities_come_first": "lower priorities are tried first"},
        "AddsToTheEarlierAnswer": {"the_whole_answer_replaces_the_earlier_one": "replaces the earlier one"},
        "LendsItsList": {"what_the_source_holds_is_answered": "an answer is the caller's own"},
        "AnswersNoneWhenAway": {"a_source_that_is_away_is_told_in_time_and_found_again": "DID NOT RAISE"},
        "Crashes": {"garbage_from_the_source_is_an_error_and_no_crash": "garbage raised KeyError"},
        "AlwaysTheFirst": {"weights_set_the_odds_among_equals": "weight sets the odds"},
    },
}

ONLY_SAID = {"OnlySaysDurable", "OnlySaysWildcards", "OnlySaysPersistent", "AlwaysTheFirst"}
"""The sound driver does not keep these either, and does not say so: its parts are skipped."""


@functools.cache
def results_of(module: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What became of the parts of BROKEN, for the broken drivers and for the sound one, by (driver, part)."""
    wanted = {f"Test{name}::test_{part}" for name, parts in BROKEN[module].items() for part in parts}
    wanted |= {f"TestSound::test_{part}" for parts in BROKEN[module].values() for part in parts}
    path = HERE / f"{module}.py"
    done = subprocess.run(
        [sys.executable, str(HERE / "run_checks.py"), *(f"{path}::{each}" for each in sorted(wanted))],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert results, done.stderr
    return {(each["kit"].removeprefix("Test"), each["part"].removeprefix("test_")): each for each in results}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("module", "driver"), [(module, driver) for module, drivers in BROKEN.items() for driver in drivers]
)
def test_a_broken_driver_fails_by_the_part_that_demands_what_it_breaks(module: str, driver: str) -> None:
    results = results_of(module)
    for part, clause in BROKEN[module][driver].items():
        found = results[driver, part]
        assert found["outcome"] == "failed", f"{driver} passed {part}"
        assert clause in found["reason"], found["reason"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", BROKEN)
def test_the_sound_driver_passes_the_same_parts(module: str) -> None:
    results = results_of(module)
    only_said = {part for driver, parts in BROKEN[module].items() if driver in ONLY_SAID for part in parts}
    failed = {
        part: found["reason"]
        for (driver, part), found in results.items()
        if driver == "Sound" and found["outcome"] == "failed"
    }
    skipped = {part for (driver, part), found in results.items() if driver == "Sound" and found["outcome"] == "skipped"}
    assert failed == {}
    assert skipped == only_said


@pytest.mark.parametrize("module", BROKEN)
def test_every_driver_of_a_module_is_expected_to_fail_somewhere(module: str) -> None:
    source = (HERE / f"{module}.py").read_text()
    named = {
        line.split("(")[0].removeprefix("class Test") for line in source.splitlines() if line.startswith("class Test")
    }
    assert named == {*BROKEN[module], "Sound"}
