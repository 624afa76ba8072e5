"""What `micro --help` shows: one module per group of commands, with the signature and the options of each command.

These modules import nothing but typer, because every start of `micro` imports all of them. The body of a command is in
the module of the same name in `micro_core.cli` and is imported when the command runs.
"""
