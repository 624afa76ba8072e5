"""`micro plugin`: find, install, verify and create plugins."""

from __future__ import annotations

from typing import Annotated

import typer

from micro_core.cli.options import Config, Json, PluginName, Sets

plugin_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="List, install, verify and create plugins.")

Requirements = Annotated[
    list[str], typer.Argument(help="Plugin or distribution, e.g. quic, tunnel:quic or micro-quic-tunnel.")
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show the pip command without running it.")]


def register(app: typer.Typer) -> None:
    """Add the group to `app`."""
    app.add_typer(plugin_app, name="plugin")


@plugin_app.command("list")
def plugin_list(
    check: Annotated[bool, typer.Option("--check", help="Import each plugin to find broken ones.")] = False,
    all_plugins: Annotated[bool, typer.Option("--all", help="Include known plugins that are not installed.")] = False,
    json: Json = False,
) -> None:
    """List the installed plugins by role. No plugin is imported, except with --check."""
    from micro_core.cli.plugin import list_plugins

    list_plugins(check=check, all_plugins=all_plugins, as_json=json)


@plugin_app.command("info")
def plugin_info(name: PluginName, json: Json = False) -> None:
    """Show a plugin and its options. Includes defaults, types and environment variables."""
    from micro_core.cli.plugin import plugin_details

    plugin_details(name, as_json=json)


@plugin_app.command("verify")
def plugin_verify(
    name: PluginName,
    sets: Sets = None,
    config: Config = None,
    capabilities: Annotated[
        str | None,
        typer.Option(help="Capabilities to test, e.g. durable,queue-groups. Default: those that the driver declares."),
    ] = None,
    timeout: Annotated[float, typer.Option(help="Timeout of the whole run in seconds.")] = 900.0,
    json: Json = False,
) -> None:
    """Run the conformance kit of a plugin. Exits with 9 if a check failed."""
    from micro_core.cli.verify import verify_plugin

    verify_plugin(name, sets=sets or [], config=config, capabilities=capabilities, timeout_s=timeout, as_json=json)


@plugin_app.command("install")
def plugin_install(
    names: Requirements,
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Install the newest compatible version.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Install plugins with pip. They are installed into the environment of this `micro`; pip's own settings apply."""
    from micro_core.cli.pip import install_plugins

    install_plugins(names, upgrade=upgrade, dry_run=dry_run, as_json=json)


@plugin_app.command("uninstall")
def plugin_uninstall(
    names: Requirements,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask for confirmation.")] = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Uninstall plugins with pip. All plugins of the same distribution are uninstalled."""
    from micro_core.cli.pip import uninstall_plugins

    uninstall_plugins(names, yes=yes, dry_run=dry_run, as_json=json)


@plugin_app.command("new")
def plugin_new(
    role: Annotated[
        str,
        typer.Argument(
            help="Role of the driver: registry, transport, broker, tunnel, table or resolver; or hooks for a "
            "cross-cutting plugin."
        ),
    ],
    name: Annotated[str, typer.Argument(help="Name by which users select the plugin, e.g. etcd.")],
    directory: Annotated[str, typer.Option("--dir", help="Directory to create. Default: micro-NAME-ROLE.")] = "",
    license_name: Annotated[
        str, typer.Option("--license", help="License as an SPDX expression, e.g. MIT or Apache-2.0.")
    ] = "MIT",
    author: Annotated[
        str, typer.Option(help="Author in the license and the package metadata. Default: user.name of git.")
    ] = "",
    json: Json = False,
) -> None:
    """Create a plugin package. It has a working driver, its conformance kit, a README and a CI workflow."""
    from micro_core.cli.new_plugin import write_plugin

    write_plugin(role, name, directory=directory, license_name=license_name, author=author, as_json=json)
