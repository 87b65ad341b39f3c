"""The requirements of the extra `docs` without those of the project, as lines for pip: the site needs no torch."""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path

if __name__ == "__main__":
    project = tomllib.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))["project"]
    sys.stdout.write("\n".join(project["optional-dependencies"]["docs"]) + "\n")
