"""Which changes of the route table can change the interest of other nodes in topics."""

from __future__ import annotations

from dataclasses import replace

import pytest

from micro_core.contract.table import (
    LocalRouteChanged,
    Offer,
    OffersChanged,
    OriginRoute,
    OriginRouteChanged,
    Route,
    TableEvent,
)
from micro_core.proxy.routes import changes_interests

LOCAL = Route(service="~t", address="x", gateway="", network="n", router="m", link="local", metric=0)
VIA_G = OriginRoute(origin="o", gateway="g", metric=1, network="n", site="eu")


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (LocalRouteChanged(None, LOCAL), True),
        (LocalRouteChanged(LOCAL, None), True),
        (LocalRouteChanged(None, replace(LOCAL, service="t")), False),
        (OriginRouteChanged(None, VIA_G), True),
        (OriginRouteChanged(VIA_G, None), True),
        (OriginRouteChanged(VIA_G, replace(VIA_G, metric=2, hops=3)), False),
        (OriginRouteChanged(VIA_G, replace(VIA_G, services=frozenset())), True),
        (OriginRouteChanged(VIA_G, replace(VIA_G, site="us")), True),
        (OffersChanged("o", ((None, Offer("a")), (None, Offer("~t")))), True),
        (OffersChanged("o", ((Offer("~t"), None),)), True),
        (OffersChanged("o", ((None, Offer("a")), (Offer("~t"), Offer("~t", load_us=1)))), False),
    ],
    ids=str,
)
def test_interest_changes_with_offers_and_reachable_origins(event: TableEvent, expected: bool) -> None:
    assert changes_interests(event) is expected
