"""Broker drivers: topics hosted by a node, and memory."""
