"""`python -m micro_core.testing`: what `micro plugin verify` starts. See `verify`."""

from micro_core.testing.verify import main

main()
