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
network_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Look at the network from this site's node."
)
plugin_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="See which drivers are installed.")
config_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="See and check the settings.")
new_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Write a starting point.")
app.add_typer(network_app, name="network")
app.add_typer(plugin_app, name="plugin")
app.add_typer(config_app, name="config")
app.add_typer(new_app, name="new")

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object of a stable shape.")]
Config = Annotated[
    str | None, typer.Option("-c", "--config", help="Settings file; default: MICRO_CONFIG, ./micro.toml.")
]
Plugins = Annotated[str | None, typer.Option(help="Plugins to use, as in quic,mdns (MICRO_PLUGINS).")]
Sets = Annotated[list[str] | None, typer.Option("--set", help="One setting: --set quic.port=8085, --set node.site=eu.")]
Blocks = Annotated[list[str] | None, typer.Option("-p", help="-p no:NAME leaves a plugin out.")]
Address = Annotated[str | None, typer.Option(help="Call this address instead of looking one up.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds the call may take (MICRO_TIMEOUT; default 5).")]
Service = Annotated[str, typer.Argument(help="As in go.micro.srv.greeter.")]
Endpoint = Annotated[str, typer.Argument(help="As in Say.Hello.")]
Body = Annotated[list[str] | None, typer.Argument(help="JSON; or - for stdin, @FILE, or key=value pairs. Default: {}.")]
Topic = Annotated[str, typer.Argument(help="As in orders.created.")]
Metadata = Annotated[list[str] | None, typer.Option("--metadata", help="key=value to send along; may be repeated.")]


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
        str | None, typer.Option(help="host:port for links of other nodes; none only dials out (MICRO_LISTEN).")
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
    body: Body = None,
    address: Address = None,
    timeout: Timeout = None,
    metadata: Metadata = None,
    config: Config = None,
    plugins: Plugins = None,
    sets: Sets = None,
    json: Json = False,
) -> None:
    """Call a streaming endpoint and print each item on a line of its own."""
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
def version(json: Json = False) -> None:
    """Print the version."""
    from micro_core.cli.config import show_version

    show_version(json)


@network_app.command()
def nodes(config: Config = None, address: Address = None, json: Json = False) -> None:
    """The nodes within three hops, nearest first."""
    from micro_core.cli.network import show_nodes

    show_nodes(config, address, json)


@network_app.command()
def connections(config: Config = None, address: Address = None, json: Json = False) -> None:
    """The links of this site's node, and the addresses it cannot link to."""
    from micro_core.cli.network import show_connections

    show_connections(config, address, json)


@network_app.command("services")
def network_services(config: Config = None, address: Address = None, json: Json = False) -> None:
    """Every service that can be called from here, with its sites."""
    from micro_core.cli.network import show_services

    show_services(config, address, json)


@network_app.command()
def routes(
    service: Annotated[str, typer.Option(help="Only routes to this service.")] = "",
    router: Annotated[str, typer.Option(help="Only routes of this origin (node id).")] = "",
    gateway: Annotated[str, typer.Option(help="Only routes through this node (node id).")] = "",
    link: Annotated[str, typer.Option(help="local or network.")] = "",
    topics: Annotated[bool, typer.Option(help="Interests in topics, too.")] = False,
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """The route table of this site's node, best first within a service."""
    from micro_core.cli.network import show_routes

    query = {"service": service, "router": router, "gateway": gateway, "link": link, "topics": topics}
    show_routes(query, config, address, json)


@network_app.command()
def graph(
    radius: Annotated[int, typer.Option(help="Hops to look, at most 3.", min=0, max=3)] = 3,
    mermaid: Annotated[bool, typer.Option("--mermaid", help="Print a mermaid diagram.")] = False,
    config: Config = None,
    address: Address = None,
    json: Json = False,
) -> None:
    """The nodes within sight and the links between them."""
    from micro_core.cli.network import show_graph

    show_graph(radius, mermaid, config, address, json)


@network_app.command()
def status(config: Config = None, address: Address = None, json: Json = False) -> None:
    """What this site's node is, and what it has counted."""
    from micro_core.cli.network import show_status

    show_status(config, address, json)


@network_app.command()
def token(config: Config = None, sets: Sets = None) -> None:
    """Print the network's token, for nodes on other machines. It is a secret."""
    from micro_core.cli.network import show_token

    show_token(config, sets or [])


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
def plugin_info(name: Annotated[str, typer.Argument(help="As in quic, or tunnel:quic.")], json: Json = False) -> None:
    """What a plugin is, and its options with defaults, types and variables."""
    from micro_core.cli.plugin import plugin_details

    plugin_details(name, as_json=json)


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
    from micro_core.spec.errors import ConfigError

    try:
        is_said = load_settings(config=config, sets=sets).origin("node.plugins") != "default"
    except ConfigError:
        # The command itself reads the same settings next, and says what is wrong with them.
        is_said = True
    return None if is_said else PEER_PLUGINS


def main() -> None:
    """Entry point of the script `micro`. Never ends in a traceback, unless one is asked for."""
    try:
        app(args=with_peer(sys.argv[1:]), prog_name="micro")
    except Exception as error:
        # In the simplest words: what usually says it may be what is missing.
        print(f"error: unexpected {type(error).__name__}: {error}", file=sys.stderr)
        if os.environ.get("MICRO_DEBUG", "") in ("", "0"):
            print("  try: micro --debug ..., which shows where it happened", file=sys.stderr)
        else:
            raise
        sys.exit(1)
