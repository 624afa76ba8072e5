"""Mutation tests: one list of mutants per area. Run by `make mutants`."""
