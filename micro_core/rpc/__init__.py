"""Calls: connections, client, server and service. What a proxy and a user both stand on."""
