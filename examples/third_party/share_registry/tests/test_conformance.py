"""Runs the conformance kit of the registry role, which tests every guarantee of the contract."""

from micro_share_registry.conformance import TestShareRegistry

__all__ = ["TestShareRegistry"]
