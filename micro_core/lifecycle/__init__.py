"""What every component of a process uses: environment, background tasks, closing, shutdown on signals, logging."""
