"""Addresses of the project for its package: that of the source is known where it is built, not in the repository."""

from __future__ import annotations

import os
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class Addresses(MetadataHookInterface):
    """Name the paper and, in a workflow of GitHub or where $SOUPBENCH_PROJECT is set, the repository."""

    PLUGIN_NAME = "custom"

    def update(self, metadata: dict[str, Any]) -> None:
        server, repository = (os.environ.get(name, "") for name in ("GITHUB_SERVER_URL", "GITHUB_REPOSITORY"))
        source = os.environ.get("SOUPBENCH_PROJECT") or (f"{server}/{repository}" if server and repository else "")
        metadata["urls"] = {
            "Paper": "https://arxiv.org/abs/2602.02890",
            **({"Source": source} if source else {}),
        }
