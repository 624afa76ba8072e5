"""`micro services`, `micro describe`."""

from __future__ import annotations

import json
from typing import Any

import typer

from micro_core.cli.client import Common, client_of, run_command, settings_of
from micro_core.cli.output import checked, show_json, show_table
from micro_core.contract.names import NETWORK_SERVICE, check_service_name
from micro_core.drivers.runtime import build_runtime
from micro_core.rpc.client import Client


def list_services(common: Common, as_json: bool) -> None:
    async def work() -> None:
        settings = settings_of(common)
        if settings.node.proxy:
            async with client_of(settings) as client:
                found = (await client.call(NETWORK_SERVICE, "Network.Services"))["services"]
            rows = [{"service": e["service"], "instances": e["routes"], "sites": e["sites"]} for e in found]
            asked, where, hint = [settings.node.proxy], "", ""
        else:
            runtime = await build_runtime(settings)
            try:
                instances = await runtime.registry.instances()
            finally:
                await runtime.close()
            asked, where = [*runtime.registries], f" on site {settings.node.site}"
            hint = "; MICRO_SITE names another site, --plugins other registries; see: micro new service NAME"
            names = sorted({instance.service for instance in instances})
            rows = [
                {
                    "service": name,
                    "instances": sum(instance.service == name for instance in instances),
                    "sites": [settings.node.site],
                }
                for name in names
            ]
        if as_json:
            show_json("micro.services/1", {"services": rows, "asked": asked})
        else:
            cells = [[row["service"], row["instances"], row["sites"]] for row in rows]
            nothing = f"no services{where} yet; asked: {', '.join(asked)}{hint}"
            show_table(["service", "instances", "sites"], cells, nothing)

    run_command(work, as_json=as_json)


def describe_service(service: str, address: str | None, common: Common, as_json: bool) -> None:
    async def work() -> None:
        settings = settings_of(common)
        checked(check_service_name, service)
        async with client_of(settings) as client:
            described = await _described(client, service, address)
        if as_json:
            show_json("micro.describe/1", described)
            return
        typer.echo(f"{described['service']}  version {described['version']}  instance {described['id']}")
        for endpoint in described["endpoints"]:
            queue = f" in queue {endpoint['queue']}" if endpoint["queue"] else ""
            typer.echo(f"\n{endpoint['name']}  ({endpoint['kind']}{queue})")
            if endpoint["description"]:
                typer.echo(f"  {endpoint['description']}")
            for what in ("request", "response"):
                if endpoint[what]:
                    typer.echo(f"  {what}: {json.dumps(endpoint[what], ensure_ascii=False)}")

    run_command(work, as_json=as_json)


async def _described(client: Client, service: str, address: str | None) -> dict[str, Any]:
    answer: dict[str, Any] = await client.call(service, "Debug.Describe", address=address)
    return answer
