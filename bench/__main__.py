"""`python -m bench` and the `bench` command."""

from __future__ import annotations

import sys


def main() -> None:
    try:
        from bench.cli.main import start

        start()
    except KeyboardInterrupt:  # while modules load, or again while the first one is handled
        sys.stderr.write("bench: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
