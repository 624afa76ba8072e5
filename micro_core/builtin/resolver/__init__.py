"""Resolver drivers: static addresses, the registry of the site, and memory."""
