"""Shared code of the conformance kits."""
