"""Drivers that need no plugin."""
