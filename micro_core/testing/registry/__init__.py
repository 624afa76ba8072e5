"""The conformance kit of the registry role."""
