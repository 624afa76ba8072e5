"""Routing: learn where services run from the registry and from neighbours, and advertise it to neighbours."""
