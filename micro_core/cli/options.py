"""Options and arguments shared by several commands. Imports nothing but typer, because `--help` needs this module."""

from __future__ import annotations

from typing import Annotated

import typer


def _plugin_names(incomplete: str) -> list[str]:
    from micro_core.cli.completion import plugin_names

    return plugin_names(incomplete)


def _setting_keys(incomplete: str) -> list[str]:
    from micro_core.cli.completion import setting_keys

    return setting_keys(incomplete)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object with a stable schema.")]
Config = Annotated[
    str | None,
    typer.Option("-c", "--config", help="Settings file. Default: the value of MICRO_CONFIG, or ./micro.toml."),
]
Plugins = Annotated[
    str | None,
    typer.Option(help="Plugins to use, e.g. quic,mdns (MICRO_PLUGINS).", autocompletion=_plugin_names),
]
Sets = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Override one setting, e.g. --set quic.port=8085 or --set node.site=eu. May be repeated.",
        autocompletion=_setting_keys,
    ),
]
Blocks = Annotated[
    list[str] | None, typer.Option("-p", help="Exclude a plugin, e.g. -p no:mdns. May be repeated (MICRO_BLOCK).")
]
PluginName = Annotated[
    str, typer.Argument(help="Name of a plugin, e.g. quic or tunnel:quic.", autocompletion=_plugin_names)
]
Address = Annotated[
    str | None, typer.Option(help="Address to call, e.g. tcp://127.0.0.1:8080. Default: found in the registry.")
]
Timeout = Annotated[float | None, typer.Option(help="Timeout of the call in seconds. Default: MICRO_TIMEOUT, or 5.")]
Service = Annotated[str, typer.Argument(help="Service name, e.g. go.micro.srv.greeter.")]
Endpoint = Annotated[str, typer.Argument(help="Endpoint name, e.g. Say.Hello.")]
Body = Annotated[
    list[str] | None,
    typer.Argument(help="JSON, key=value pairs, @FILE, or - to read standard input. Default: {}."),
]
StreamBody = Annotated[
    list[str] | None,
    typer.Argument(
        help="One item to send: JSON, key=value pairs, or @FILE. Use - to send each line of standard input. "
        "Default: {}."
    ),
]
StreamTimeout = Annotated[float | None, typer.Option(help="Timeout of the whole stream in seconds. Default: 3600.")]
Topic = Annotated[str, typer.Argument(help="Topic name, e.g. orders.created.")]
Metadata = Annotated[
    list[str] | None, typer.Option("--metadata", help="Metadata to send, e.g. tenant=blue. May be repeated.")
]
