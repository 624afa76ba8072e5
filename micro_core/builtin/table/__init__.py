"""Table driver: routes in memory."""
