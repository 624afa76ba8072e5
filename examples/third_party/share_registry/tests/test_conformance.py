"""Every promise of the contract, as tests: the kit of the registry role."""

from micro_share_registry.conformance import TestShareRegistry

__all__ = ["TestShareRegistry"]
