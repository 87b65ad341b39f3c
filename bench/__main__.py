"""`python -m bench` and the `bench` command."""

from __future__ import annotations


def main() -> None:
    from bench.cli.main import start

    start()


if __name__ == "__main__":
    main()
