"""Where the services are: routes learned from the registry and from neighbours, advertised, withdrawn, forgotten."""
