"""Tunnel driver: links in memory."""
