"""`python -m hyperlog` is the `hyperlog` command."""

from __future__ import annotations

import sys

from hyperlog.cli import main

sys.exit(main())
