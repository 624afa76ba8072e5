"""The `micro` command: what there is, and nothing more. Each body imports its group when it runs.

Only typer is imported here, so that `micro --help` and completion cost what typer costs.

To add a command: write its body in `cli/<group>.py`, and here, beside its neighbours, a function with the options that
`--help` shows, which imports that body and calls it. Bodies run inside `output.guarded`.
"""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from micro_core.cli.component_words import add_components
from micro_core.cli.lab_words import lab_app
from micro_core.cli.lazy_typer import name_of, trimmed
from micro_core.cli.network_words import network_app
from micro_core.cli.options import (
    Address,
    Blocks,
    Body,
    Config,
    Endpoint,
    Json,
    Metadata,
    Plugin,
    Plugins,
    Service,
    Sets,
    StreamBody,
    StreamTimeout,
    Timeout,
    Topic,
)

app = typer.Typer(
    name="micro",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="A services network: run a node, look at the network, call services by name.",
    epilog=(
        "Exit codes: 0 ok, 1 the service answered an error, 2 usage, 3 configuration or plugin, 4 not found, "
        "5 deadline, 6 unreachable, 7 denied, 8 overloaded, 9 partial, 130 interrupted."
    ),
)
plugin_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="See, add, remove and write plugins.")
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="See and check the settings.")
new_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write a starting point.")
app.add_typer(network_app, name="network")
app.add_typer(lab_app, name="lab")
app.add_typer(plugin_app, name="plugin")
app.add_typer(config_app, name="config")
app.add_typer(new_app, name="new")


@app.callback()
def options(
    peer: Annotated[
        bool, typer.Option("--peer", help="[ADDR] Join the network: `micro run --plugins quic`, linked to ADDR.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show where errors come from (MICRO_DEBUG=1).")] = False,
) -> None:
    """Options of every command. `--peer` is handled in `main`, since its value is optional."""
    del peer
    if debug:
        os.environ["MICRO_DEBUG"] = "1"


@app.command()
def run(
    plugins: Plugins = None,
    config: Config = None,
    name: Annotated[str | None, typer.Option(help="The node's name for people (MICRO_NAME).")] = None,
    network: Annotated[str | None, typer.Option(help="Network to belong to (MICRO_NETWORK).")] = None,
    site: Annotated[str | None, typer.Option(help="Site of this node (MICRO_SITE).")] = None,
    listen: Annotated[
        str | None,
        typer.Option(
            help="host:port for links of other nodes, or quic://:8085,tls://:443; none only dials out (MICRO_LISTEN)."
        ),
    ] = None,
    address: Annotated[str | None, typer.Option(help="Where to take calls, tcp://host:port (MICRO_ADDRESS).")] = None,
    node: Annotated[
        list[str] | None, typer.Option(help="Node to stay linked to; may be repeated (MICRO_NODES).")
    ] = None,
    sets: Sets = None,
    block: Blocks = None,
    joining: Annotated[bool, typer.Option("--joining", hidden=True)] = False,
) -> None:
    """Run a node on this site, until Ctrl-C."""
    from micro_core.cli.run import run_node

    flags = {
        "node.plugins": plugins or (_plugins_to_join(config, sets or []) if joining else None),
        "node.name": name,
        "node.network": network,
        "node.site": site,
        "node.listen": listen,
        "node.address": address,
        "node.nodes": tuple(node) if node else None,
    }
    run_node(flags, config=config, sets=sets or [], block=block or [])


add_components(app)


@app.command()
def up(
    file: Annotated[str, typer.Option("-f", "--file", help="File with [nodes.NAME] and [services.NAME].")] = (
        "micro.toml"
    ),
    check: Annotated[bool, typer.Option("--check", help="Only read the file, and show what would be started.")] = False,
    json: Json = False,
) -> None:
    """Start the nodes and services of one file, until Ctrl-C."""
    from micro_core.cli.up import bring_up

    bring_up(file, check=check, as_json=json)


@app.command()
def call(
    service: Service,
    endpoint: Endpoint,
    body: Body = None,
    address: Address = None,
    timeout: Timeout = None,
    metadata: Metadata = None,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Call an endpoint and print its answer as JSON."""
    from micro_core.cli.call import call_service

    call_service(service, endpoint, body, address, timeout, metadata, (config, plugins, sets), json)


@app.command()
def stream(
    service: Service,
    endpoint: Endpoint,
    body: StreamBody = None,
    address: Address = None,
    timeout: StreamTimeout = None,
    metadata: Metadata = None,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Call an endpoint of any kind and print each item of its answer on a line of its own.

    With - each line of stdin is an item that is sent, as it comes; the end of stdin ends what is sent.
    """
    from micro_core.cli.call import stream_service

    stream_service(service, endpoint, body, address, timeout, metadata, (config, plugins, sets), json)


@app.command()
def publish(
    topic: Topic,
    body: Body = None,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Publish a message."""
    from micro_core.cli.call import publish_message

    publish_message(topic, body, (config, plugins, sets), json)


@app.command()
def subscribe(
    topic: Topic,
    queue: Annotated[str, typer.Option(help="Share the messages with the other members of this group.")] = "",
    count: Annotated[int, typer.Option(help="End after so many messages; 0: never.")] = 0,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Print the messages of a topic, each on a line of its own, until Ctrl-C."""
    from micro_core.cli.call import subscribe_to

    subscribe_to(topic, queue, count, (config, plugins, sets), json)


@app.command()
def services(config: Config = None, plugins: Plugins = None, sets: Sets = None, json: Json = False) -> None:
    """List the services of this site; with MICRO_PROXY, those of the whole network."""
    from micro_core.cli.registry import list_services

    list_services((config, plugins, sets), json)


@app.command()
def describe(
    service: Service,
    address: Address = None,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Show what a service can do: its endpoints with their requests and answers."""
    from micro_core.cli.registry import describe_service

    describe_service(service, address, (config, plugins, sets), json)


@app.command()
def trace(
    service: Service,
    endpoint: Annotated[
        str, typer.Argument(help="Called at the end of the way; it should do no harm.")
    ] = "Debug.Health",
    body: Body = None,
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """Follow the way of a call, node by node, with the time that each takes."""
    from micro_core.cli.explain import trace_service

    trace_service(service, endpoint, body, config, address, json)


@app.command()
def version(json: Json = False) -> None:
    """Print the version."""
    from micro_core.cli.config import show_version

    show_version(json)


@plugin_app.command("list")
def plugin_list(
    check: Annotated[bool, typer.Option("--check", help="Load each, to find those that are broken.")] = False,
    all_plugins: Annotated[bool, typer.Option("--all", help="Also those that are known and not installed.")] = False,
    json: Json = False,
) -> None:
    """The installed plugins by role. Imports none of them, unless --check."""
    from micro_core.cli.plugin import list_plugins

    list_plugins(check=check, all_plugins=all_plugins, as_json=json)


@plugin_app.command("info")
def plugin_info(name: Plugin, json: Json = False) -> None:
    """What a plugin is, and its options with defaults, types and variables."""
    from micro_core.cli.plugin import plugin_details

    plugin_details(name, as_json=json)


@plugin_app.command("verify")
def plugin_verify(
    name: Plugin,
    sets: Sets = None,
    config: Config = None,
    capabilities: Annotated[
        str | None, typer.Option(help="What to demand, as in durable,queue-groups; default: what the driver declares.")
    ] = None,
    timeout: Annotated[float, typer.Option(help="Longest run in seconds.")] = 900.0,
    json: Json = False,
) -> None:
    """Run the conformance kit of a plugin's role against it. Exits 9 when a part failed."""
    from micro_core.cli.verify import verify_plugin

    verify_plugin(name, sets=sets or [], config=config, capabilities=capabilities, timeout_s=timeout, as_json=json)


@plugin_app.command("install")
def plugin_install(
    names: Annotated[list[str], typer.Argument(help="As in quic, tunnel:quic, or the name of a distribution.")],
    upgrade: Annotated[bool, typer.Option("--upgrade", help="Take the newest version that fits.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the pip command, and do not run it.")] = False,
    json: Json = False,
) -> None:
    """Install plugins into this environment, with pip and its settings."""
    from micro_core.cli.pip import install_plugins

    install_plugins(names, upgrade=upgrade, dry_run=dry_run, as_json=json)


@plugin_app.command("uninstall")
def plugin_uninstall(
    names: Annotated[list[str], typer.Argument(help="As in quic, tunnel:quic, or the name of a distribution.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the pip command, and do not run it.")] = False,
    json: Json = False,
) -> None:
    """Uninstall the distributions of plugins from this environment, with pip."""
    from micro_core.cli.pip import uninstall_plugins

    uninstall_plugins(names, yes=yes, dry_run=dry_run, as_json=json)


@plugin_app.command("new")
def plugin_new(
    role: Annotated[
        str, typer.Argument(help="registry, transport, broker, tunnel, table or resolver; hooks for what cuts across.")
    ],
    name: Annotated[str, typer.Argument(help="The word that people will type, as in etcd.")],
    directory: Annotated[str, typer.Option("--dir", help="Where to write; default: micro-NAME-ROLE.")] = "",
    license_name: Annotated[str, typer.Option("--license", help="SPDX expression, as in MIT or Apache-2.0.")] = "MIT",
    author: Annotated[str, typer.Option(help="For the license and the metadata; default: git's user.name.")] = "",
    json: Json = False,
) -> None:
    """Write a plugin of your own: a package with a working driver, its kit, a README and CI."""
    from micro_core.cli.new_plugin import write_plugin

    write_plugin(role, name, directory=directory, license_name=license_name, author=author, as_json=json)


@config_app.command("show")
def config_show(
    config: Config = None, plugins: Plugins = None, sets: Sets = None, block: Blocks = None, json: Json = False
) -> None:
    """Every setting, with where its value comes from. Secrets are masked."""
    from micro_core.cli.config import show_config

    show_config((config, plugins, sets or [], block or []), json)


@config_app.command("validate")
def config_validate(
    config: Config = None, plugins: Plugins = None, sets: Sets = None, block: Blocks = None, json: Json = False
) -> None:
    """Check every setting and every named plugin's options."""
    from micro_core.cli.config import validate_config

    validate_config((config, plugins, sets or [], block or []), json)


@new_app.command("service")
def new_service(
    name: Annotated[str, typer.Argument(help="Name of the service, as in go.micro.srv.greeter.")],
    directory: Annotated[str, typer.Option(help="Where to write; default: the last word of the name.")] = "",
) -> None:
    """Write a service with one endpoint, ready to run."""
    from micro_core.cli.new import write_service

    write_service(name, directory)


PEER_PLUGINS = "quic"
"""What `micro --peer` links with where nobody says which plugins to use."""


def with_peer(arguments: list[str]) -> list[str]:
    """`micro --peer [ADDR] ...` (or `--peer=ADDR`) as the run command it stands for; anything else as it is."""
    place = next((place for place, word in enumerate(arguments) if word != "--debug"), len(arguments))
    before, rest = arguments[:place], arguments[place:]
    if not rest or rest[0].partition("=")[0] != "--peer":
        return arguments
    address = rest.pop(0).partition("=")[2]
    if not address and rest and not rest[0].startswith("-"):
        address = rest.pop(0)
    return [*before, "run", "--joining", *(["--node", address] if address else []), *rest]


def _plugins_to_join(config: str | None, sets: list[str]) -> str | None:
    """PEER_PLUGINS, unless the environment or a file says which plugins to use."""
    from micro_core.config import load_settings
    from micro_core.contract.errors import ConfigError

    try:
        is_said = load_settings(config=config, sets=sets).origin("node.plugins") != "default"
    except ConfigError:
        # The command itself reads the same settings next, and says what is wrong with them.
        is_said = True
    return None if is_said else PEER_PLUGINS


def _add_command(arguments: list[str]) -> None:
    own = {name_of(command) for command in app.registered_commands}
    own |= {str(group.name) for group in app.registered_groups}
    if arguments and arguments[0] not in own and not arguments[0].startswith("-"):
        from micro_core.cli.output import guarded
        from micro_core.cli.plugin_commands import add_command

        try:
            guarded(lambda: add_command(app, arguments[0]))
        except typer.Exit as ended:
            sys.exit(ended.exit_code)


def main() -> None:
    """Entry point of the script `micro`. Never ends in a traceback, unless one is asked for."""
    try:
        arguments = with_peer(sys.argv[1:])
        _add_command(arguments)
        # Completion is asked for words that this process does not see as arguments.
        is_completing = "_MICRO_COMPLETE" in os.environ
        (app if is_completing else trimmed(app, arguments))(args=arguments, prog_name="micro")
    except Exception as error:
        # In the simplest words: what usually says it may be what is missing.
        print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        if os.environ.get("MICRO_DEBUG", "") in ("", "0"):
            print("  try: micro --debug ..., which shows where it happened", file=sys.stderr)
        else:
            raise
        sys.exit(1)
