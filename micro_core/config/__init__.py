"""Settings: flag, MICRO_* variable, micro.toml, default; the first that says something counts, and it is remembered which.

    [node]                  name, network, site, plugins, listen, address, nodes, token, ...   (NodeSettings)
    [plugins.quic]          options of the driver `quic`; [plugins."registry:redis"] where the word alone is ambiguous

Variables: MICRO_SITE for node.site and so on; MICRO_QUIC__PORT for an option of a plugin, MICRO_REGISTRY__REDIS__URL
where the word alone is ambiguous. MICRO_NETWORK is the network's name and nothing else; so is MICRO_NETWORK_NAME, which
wins. Flags: `--set quic.port=1`, `--set node.site=eu`, and `--set plugins.node.retry_s=1` for the driver called `node`.

What clients need (proxy, timeout) stands in [node], too: a site has one file and one set of variables for its node, its
services and its commands, and nobody has to know which of two tables a setting is in.

A value `$env:NAME` or `$file:path` is read from there, so that secrets need not stand in files; a relative path starts
at the directory of the file that says it. What is secret is masked wherever it is shown.

`values` says what a value is and where from, `sources` reads them, `options` makes dataclasses of them, `settings`
puts it together.
"""

from micro_core.config.options import MASK, build_options, is_secret, shown, type_text
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
    "is_secret",
    "load_settings",
    "shown",
    "type_text",
]
