"""No network: what the libraries that download are told."""

from __future__ import annotations

import os
import sys
from functools import cache


def go_offline() -> None:
    """Keep `datasets`, timm and the hub from the network in this process and those it starts."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    for module, names in (("huggingface_hub.constants", ["HF_HUB_OFFLINE"]), ("datasets.config", ["HF_HUB_OFFLINE"])):
        loaded = sys.modules.get(module)
        for name in names:
            if loaded is not None and hasattr(loaded, name):
                setattr(loaded, name, True)


@cache
def is_reachable() -> bool:
    """Whether the hub answers at all, asked once: its library would ask for most of a minute."""
    import requests
    from huggingface_hub import constants

    try:
        requests.head(constants.ENDPOINT, timeout=5, allow_redirects=False)
    except requests.RequestException:
        return False
    return True


def is_offline() -> bool:
    """Whether this process was told to keep from the network, for libraries that do not know it."""
    return os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE", "ON", "YES")
