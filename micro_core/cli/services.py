"""The bodies of `micro services` and `micro describe`."""

from __future__ import annotations

import json

import typer

from micro_core.cli.client import SettingOptions, load_client_settings, open_client, run_command
from micro_core.cli.output import check_argument, show_json, show_table
from micro_core.contract.names import NETWORK_SERVICE, check_service_name
from micro_core.drivers.runtime import build_runtime


def list_services(options: SettingOptions, as_json: bool) -> None:
    """Print the services of the site, or of the whole network if a proxy is set. Raises typer.Exit on failure."""

    async def work() -> None:
        settings = load_client_settings(options)
        if settings.node.proxy:
            async with open_client(settings) as client:
                found = (await client.call(NETWORK_SERVICE, "Network.Services"))["services"]
            rows = [{"service": e["service"], "instances": e["routes"], "sites": e["sites"]} for e in found]
            searched, where, hint = [settings.node.proxy], "", ""
        else:
            runtime = await build_runtime(settings)
            try:
                instances = await runtime.registry.instances()
            finally:
                await runtime.close()
            searched, where = [*runtime.registries], f" on site {settings.node.site}"
            hint = (
                "; MICRO_SITE selects another site, --plugins other registries; `micro new service NAME` creates a "
                "service"
            )
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
            show_json("micro.services/1", {"services": rows, "searched": searched})
        else:
            cells = [[row["service"], row["instances"], row["sites"]] for row in rows]
            empty = f"no services{where} yet; searched: {', '.join(searched)}{hint}"
            show_table(["service", "instances", "sites"], cells, empty)

    run_command(work, as_json=as_json)


def describe_service(service: str, address: str | None, options: SettingOptions, as_json: bool) -> None:
    """Print the endpoints of a service with their request and response types. Raises typer.Exit on failure."""

    async def work() -> None:
        settings = load_client_settings(options)
        check_argument(check_service_name, service)
        async with open_client(settings) as client:
            description = await client.call(service, "Debug.Describe", address=address)
        if as_json:
            show_json("micro.describe/1", description)
            return
        typer.echo(f"{description['service']}  version {description['version']}  instance {description['id']}")
        for endpoint in description["endpoints"]:
            queue = f" in queue {endpoint['queue']}" if endpoint["queue"] else ""
            typer.echo(f"\n{endpoint['name']}  ({endpoint['kind']}{queue})")
            if endpoint["description"]:
                typer.echo(f"  {endpoint['description']}")
            for key in ("request", "response"):
                if endpoint[key]:
                    typer.echo(f"  {key}: {json.dumps(endpoint[key], ensure_ascii=False)}")

    run_command(work, as_json=as_json)
