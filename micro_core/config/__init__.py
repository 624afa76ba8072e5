"""Settings from four sources: flags, `MICRO_*` variables, `micro.toml` and defaults. The first source that sets a value wins.

    [node]                  name, network, site, plugins, listen, address, nodes, token, ...   (NodeSettings)
    [plugins.quic]          options of the driver `quic`; [plugins."registry:redis"] if several roles use the name

Variables: `MICRO_SITE` sets `node.site`. `MICRO_QUIC__PORT` sets an option of a plugin, and `MICRO_REGISTRY__REDIS__URL` does
so if several roles use the name. `MICRO_NETWORK` and `MICRO_NETWORK_NAME` both set the name of the network;
`MICRO_NETWORK_NAME` takes precedence.

Flags: `--set quic.port=1`, `--set node.site=eu`, and `--set plugins.node.retry_s=1` for the driver named `node`.

The settings of clients (`proxy`, `timeout`) are in `[node]`, too, so that the node, the services and the commands of a site can
share one file and one set of variables.

A value `$env:NAME` is replaced by the value of that variable, and `$file:path` by the contents of that file, so that a settings
file need not contain secrets. A relative path starts at the directory of the settings file. Secrets are masked in all output.

`values` contains a single value with its origin, `sources` reads the values, `options` builds dataclasses from them, and
`settings` combines everything.
"""

from micro_core.config.options import MASK, build_options, display_value, is_secret, type_name
from micro_core.config.settings import NodeSettings, Settings, load_settings
from micro_core.config.sources import FILE_NAME
from micro_core.config.values import MAX_FILE_BYTES, Rank, Value

__all__ = [
    "FILE_NAME",
    "MASK",
    "MAX_FILE_BYTES",
    "NodeSettings",
    "Rank",
    "Settings",
    "Value",
    "build_options",
    "display_value",
    "is_secret",
    "load_settings",
    "type_name",
]
