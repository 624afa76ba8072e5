"""`python -m micro_core` is `micro`."""

from micro_core.cli.main import main

if __name__ == "__main__":
    main()
