"""`python -m unipo` is the command `unipo`."""

from unipo.command import main

raise SystemExit(main())
