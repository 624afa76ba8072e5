"""Tests of the kits: each broken driver violates one clause of the contract, and the check for it fails with this clause.

The same checks pass with the correct driver from which the broken one is derived, so the violation is what they detect.
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
        "ListsOnlyThreeInstances": {
            "instances_and_versions_of_a_service_coexist": "instances returns exactly the live records"
        },
        "Reorders": {"events_of_an_instance_arrive_in_order": "events of an instance arrive in order"},
        "RestoresDeregisteredRecords": {"deregistered_record_stays_removed": "it does not reappear"},
        "LeaksTask": {"close_releases_tasks_and_files": "close ends all tasks: still running: leaked"},
        "LeaksFile": {"close_releases_tasks_and_files": "close closes all files and sockets"},
        "BlocksEventLoop": {"event_loop_is_never_blocked": "it was blocked for at least 0."},
        "StartsTaskInCreate": {"create_has_no_side_effects": "create starts no task"},
        "NeverExpiresRecords": {
            "unrenewed_record_expires_within_one_second_of_its_lease": "whose owner stops renewing it expires"
        },
        "ExpiresRecordsEarly": {
            "unrenewed_record_expires_within_one_second_of_its_lease": "exists for its whole lease",
        },
        "ReportsEveryRenewal": {"equal_record_renews_without_an_event": "renews its lease without an event"},
        "MixesSites": {"sites_and_networks_are_isolated": "instances returns exactly the live records"},
        "LosesMetadata": {"registered_instance_is_listed_across_the_site": "each complete"},
        "WritesRecordsInTwoHalves": {"record_is_replaced_atomically": "it was read half-written"},
        "RemovesBeforeReplacing": {"record_is_replaced_atomically": "it was temporarily missing"},
        "SharesMonotonicTime": {
            "registered_instance_is_listed_across_the_site": "instances returns exactly the live records"
        },
        "KeepsRecordsAfterClose": {
            "close_withdraws_own_records_and_ends_watches": "the iteration of a closed watch ends"
        },
        "KeepsWatchesOpenAfterClose": {"close_withdraws_own_records_and_ends_watches": "it still waits"},
        "HangsDuringOutage": {"unavailable_back_end_raises_unreachable_in_time": "Unreachable is raised in time"},
        "RaisesOnGarbage": {"garbage_is_counted_and_hides_no_record": "ValueError: not JSON"},
        "DoesNotCountGarbage": {"garbage_is_counted_and_hides_no_record": "dropped garbage is counted"},
        "DeclaresMisspelledCapability": {"declared_capabilities_are_known": "did you mean 'watch'?"},
    },
    "broken_brokers": {
        "DuplicatesMessages": {"subscribers_receive_each_message_once_in_order": "once and in order"},
        "ReversesMessages": {"subscribers_receive_each_message_once_in_order": "once and in order"},
        "IgnoresQueueGroups": {
            "queue_group_delivers_each_message_to_one_member": "exactly one member of a queue group receives each message"
        },
        "FavoursOneMember": {"queue_group_members_share_the_work": "every member of a queue group that keeps up"},
        "AwaitsHandlersInPublish": {"slow_subscriber_does_not_delay_others": "never delays another one"},
        "LosesHeaders": {"message_arrives_unchanged": "headers arrive unchanged"},
        "DeliversAfterUnsubscribing": {
            "closed_subscription_receives_nothing": "a closed subscription receives no messages"
        },
        "AcceptsOversizedMessages": {"oversized_message_is_rejected": "DID NOT RAISE"},
        "HangsDuringOutage": {"unavailable_back_end_raises_unreachable_in_time": "publish raises Unreachable in time"},
        "LosesSubscriptionsInOutage": {"subscriptions_survive_a_back_end_outage": "survives reconnects"},
        "OnlyDeclaresDurable": {
            "failed_message_is_redelivered": "a message whose handler failed is delivered again",
            "message_is_kept_until_a_group_member_subscribes": "are kept for the next member",
        },
        "OnlyDeclaresWildcards": {"pattern_receives_matching_topics": "BadRequest"},
    },
    "broken_tables": {
        "CachesLookups": {
            "route_with_the_same_key_is_replaced": "never an outdated one",
            "deleted_route_is_removed": "never an outdated one",
            "offers_are_added_replaced_and_removed": "never an outdated one",
        },
        "KeepsAnswersWhenALinkChanges": {
            "changed_origin_route_changes_the_routes_of_all_its_services": "never an outdated one",
            "deleted_origin_route_is_removed_and_its_offers_are_kept": "no route whose origin route was deleted",
        },
        "IgnoresDelete": {"deleted_route_is_removed": "never an outdated one"},
        "DropsOffersWithTheRoute": {
            "deleted_origin_route_is_removed_and_its_offers_are_kept": "the offers of an origin are kept"
        },
        "IgnoresLoad": {"route_joins_origin_route_and_offer": "with the load added to the metric"},
        "TreatsEachListAsChanges": {
            "offers_are_added_replaced_and_removed": "a complete list replaces all offers",
        },
        "IgnoresPartialRoutes": {"route_to_some_services_is_used_for_those_only": "these services only"},
        "ReversesLookups": {"routes_are_ordered_by_metric_then_key": "best metric first"},
        "ListsInOrderOfMetric": {"list_is_filtered_and_ordered": "ordered by service, then metric"},
        "ListsOriginRoutesByGateway": {"origin_routes_and_offers_are_ordered": "then metric, then gateway"},
        "ForgetsOriginsWithoutRoute": {"origin_routes_and_offers_are_ordered": "all origins with a route or offers"},
        "ForgetsLocalInterests": {"origin_routes_and_offers_are_ordered": "each interest in a topic once"},
        "ForgetsOffersWithoutRoute": {"origin_routes_and_offers_are_ordered": "the origins with the offer"},
        "DoesNotReportUpdates": {"watchers_receive_each_change_after_it_is_applied": "also of the metric"},
        "ReportsEqualChanges": {"equal_change_is_not_reported": "not a change"},
        "NotifiesBeforeTheChange": {"watchers_receive_each_change_after_it_is_applied": "after it was applied"},
        "DropsExpiry": {"route_joins_origin_route_and_offer": "the fields of the origin route"},
        "IgnoresRouterInKey": {
            "each_key_field_distinguishes_routes": "routes with different keys are different routes"
        },
        "OnlyDeclaresPersistent": {"routes_survive_a_restart": "restores exactly the origin routes that existed"},
    },
    "broken_sockets": {
        "DoesNotReportEnded": {
            "close_is_reported_once_at_both_ends_after_the_data": "called at the end whose peer closed"
        },
        "ReportsTheEndTwice": {"close_is_reported_once_at_both_ends_after_the_data": "called exactly once"},
        "ReportsEveryEndAsLoss": {
            "close_is_reported_once_at_both_ends_after_the_data": "the end whose peer closes reports Ended"
        },
        "NeverPausesTheWriter": {
            "paused_reader_receives_nothing_and_pauses_the_writer": "were accepted without pause_writing"
        },
        "ReadsWhilePaused": {"reading_paused_before_start_stays_paused": "no data is delivered between"},
        "LosesDataBeforeStart": {"data_received_before_start_is_delivered": "data received before start is delivered"},
        "LosesDataBeforeClose": {"close_is_reported_once_at_both_ends_after_the_data": "close sends queued data"},
        "Reorders": {"small_writes_arrive_in_order": "complete and in order"},
        "SharesAddresses": {"address_has_one_listener_and_is_free_after_close": "DID NOT RAISE"},
        "DoesNotReportALoss": {"broken_connection_is_reported_as_link_lost_at_both_ends": "when a connection breaks"},
    },
    "broken_links": {
        "ReportsNoBufferedBytes": {
            "link_reports_buffered_bytes_and_writability": "buffered_bytes counts accepted bytes",
            "paused_network_fills_the_lane_and_loses_nothing": "the network does not accept",
        },
        "NeverReportsWritable": {
            "link_reports_buffered_bytes_and_writability": "lane_writable is called when",
            "paused_network_fills_the_lane_and_loses_nothing": "when the network accepts data again",
        },
        "ReportsWritableOnEveryWrite": {
            "lane_below_its_low_mark_gets_no_writable_event": "after buffered_bytes was above the low mark",
            "paused_network_fills_the_lane_and_loses_nothing": "not called while the lane is full",
        },
        "ReordersBytes": {"small_writes_arrive_in_order": "the bytes of a lane arrive complete and in order"},
        "MixesLanes": {
            "lanes_are_complete_and_in_order_both_ways": "the bytes of a lane arrive complete and in order (lane 0)"
        },
        "DeliversWithinWrite": {"data_is_never_delivered_within_write": "write only queues data"},
        "LosesDataBeforeStart": {"data_received_before_start_is_delivered": "data received before start is delivered"},
        "DoesNotReportALoss": {"broken_link_is_reported_as_link_lost_at_both_ends": "called when a link breaks"},
        "HasDifferentChannelBindings": {"both_ends_share_a_channel_binding": "both ends have the same channel binding"},
        "LeaksOSError": {"dial_without_a_listener_raises_unreachable": "OSError: connection refused"},
        "LosesBufferedData": {"paused_network_fills_the_lane_and_loses_nothing": "no data is lost by a pause"},
    },
    "broken_resolvers": {
        "Hangs": {"answer_is_timely_and_ordered_by_priority": "resolve answers or raises Unreachable: no result"},
        "IgnoresPriorities": {
            "answer_contains_all_published_candidates": "ordered by priority, the lowest first",
            "lower_priorities_come_first": "ordered by priority, the lowest first",
        },
        "DropsPriorities": {"lower_priorities_come_first": "candidates with a lower priority come first"},
        "MergesWithThePreviousAnswer": {"new_answer_replaces_the_previous_one": "replaces the previous one"},
        "ReturnsItsInternalList": {"answer_contains_all_published_candidates": "changing the returned list"},
        "ReturnsNothingDuringOutage": {"unavailable_source_raises_unreachable_until_it_returns": "DID NOT RAISE"},
        "RaisesKeyErrorOnGarbage": {"garbage_from_the_source_raises_only_micro_errors": "got KeyError"},
        "IgnoresWeights": {"weights_set_the_odds_among_equal_priorities": "the weight sets the odds"},
    },
}

ONLY_DECLARED = {"OnlyDeclaresDurable", "OnlyDeclaresWildcards", "OnlyDeclaresPersistent", "IgnoresWeights"}
"""The correct driver violates the same clauses, but does not declare the capabilities, so its checks are skipped."""


@functools.cache
def results_of(module: str) -> dict[tuple[str, str], dict[str, Any]]:
    """Return the results of the checks in BROKEN, for the broken drivers and the correct one, by (driver, check)."""
    selected = {f"Test{name}::test_{check}" for name, checks in BROKEN[module].items() for check in checks}
    selected |= {f"TestCorrect::test_{check}" for checks in BROKEN[module].values() for check in checks}
    path = HERE / f"{module}.py"
    done = subprocess.run(
        [sys.executable, str(HERE / "run_checks.py"), *(f"{path}::{each}" for each in sorted(selected))],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert results, done.stderr
    return {(each["kit"].removeprefix("Test"), each["check"].removeprefix("test_")): each for each in results}


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("module", "driver"), [(module, driver) for module, drivers in BROKEN.items() for driver in drivers]
)
def test_broken_driver_fails_the_check_for_its_violation(module: str, driver: str) -> None:
    results = results_of(module)
    for check, clause in BROKEN[module][driver].items():
        found = results[driver, check]
        assert found["outcome"] == "failed", f"{driver} passed {check}"
        assert clause in found["reason"], found["reason"]


@pytest.mark.timeout(300)
@pytest.mark.parametrize("module", BROKEN)
def test_correct_driver_passes_the_same_checks(module: str) -> None:
    results = results_of(module)
    only_declared = {check for driver, checks in BROKEN[module].items() if driver in ONLY_DECLARED for check in checks}
    failed = {
        check: found["reason"]
        for (driver, check), found in results.items()
        if driver == "Correct" and found["outcome"] == "failed"
    }
    skipped = {
        check for (driver, check), found in results.items() if driver == "Correct" and found["outcome"] == "skipped"
    }
    assert failed == {}
    assert skipped == only_declared


@pytest.mark.parametrize("module", BROKEN)
def test_every_driver_class_is_listed_in_broken(module: str) -> None:
    source = (HERE / f"{module}.py").read_text()
    named = {
        line.split("(")[0].removeprefix("class Test") for line in source.splitlines() if line.startswith("class Test")
    }
    assert named == {*BROKEN[module], "Correct"}
