"""The subcommands of `unipo`, one file each. `unipo.cli` knows their names and imports the one that is asked for."""
