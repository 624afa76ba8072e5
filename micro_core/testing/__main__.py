"""Entry point of `python -m micro_core.testing`, which `micro plugin verify` starts. See `micro_core.testing.verify`."""

from micro_core.testing.verify import main

main()
