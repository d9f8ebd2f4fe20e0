"""`python -m unipo` is the command `unipo`."""

from unipo.cli import main

raise SystemExit(main())
