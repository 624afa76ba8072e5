"""Options and arguments that several commands share. Imports typer alone, as everything does that `--help` needs."""

from __future__ import annotations

from typing import Annotated

import typer


def _plugin_names(incomplete: str) -> list[str]:
    from micro_core.cli.completion import plugin_names

    return plugin_names(incomplete)


def _setting_keys(incomplete: str) -> list[str]:
    from micro_core.cli.completion import setting_keys

    return setting_keys(incomplete)


Json = Annotated[bool, typer.Option("--json", help="Print one JSON object of a stable shape.")]
Config = Annotated[
    str | None, typer.Option("-c", "--config", help="Settings file; default: MICRO_CONFIG, ./micro.toml.")
]
Plugins = Annotated[
    str | None, typer.Option(help="Plugins to use, as in quic,mdns (MICRO_PLUGINS).", autocompletion=_plugin_names)
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", help="One setting: --set quic.port=8085, --set node.site=eu.", autocompletion=_setting_keys),
]
Blocks = Annotated[list[str] | None, typer.Option("-p", help="-p no:NAME leaves a plugin out.")]
Plugin = Annotated[str, typer.Argument(help="As in quic, or tunnel:quic.", autocompletion=_plugin_names)]
Address = Annotated[str | None, typer.Option(help="Call this address instead of looking one up.")]
Timeout = Annotated[float | None, typer.Option(help="Seconds the call may take (MICRO_TIMEOUT; default 5).")]
Service = Annotated[str, typer.Argument(help="As in go.micro.srv.greeter.")]
Endpoint = Annotated[str, typer.Argument(help="As in Say.Hello.")]
Body = Annotated[list[str] | None, typer.Argument(help="JSON; or - for stdin, @FILE, or key=value pairs. Default: {}.")]
StreamBody = Annotated[
    list[str] | None,
    typer.Argument(help="JSON, @FILE or key=value pairs: what is sent. Or - to send each line of stdin. Default: {}."),
]
StreamTimeout = Annotated[float | None, typer.Option(help="Seconds the whole stream may take; default 3600.")]
Topic = Annotated[str, typer.Argument(help="As in orders.created.")]
Metadata = Annotated[list[str] | None, typer.Option("--metadata", help="key=value to send along; may be repeated.")]
