"""The proxy of a node: forwards calls, streams and messages along routes."""
