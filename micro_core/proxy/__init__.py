"""Where does this frame go: calls, streams and messages forwarded by route, bodies untouched."""
