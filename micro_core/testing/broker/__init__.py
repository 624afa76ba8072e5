"""The conformance kit of the broker role."""
