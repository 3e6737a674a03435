"""``python -m ganfast`` is the ``ganfast`` command."""

from __future__ import annotations

from ganfast.cli import main

if __name__ == "__main__":
    main()
