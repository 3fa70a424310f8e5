"""``python -m orthotrain`` is the ``orthotrain`` command."""

from __future__ import annotations

from orthotrain.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
