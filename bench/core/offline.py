"""Keep the libraries that download off the network."""

from __future__ import annotations

import os
import sys
from functools import cache


def go_offline() -> None:
    """Keep `datasets`, timm and the hub client off the network, in this process and its child processes."""
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_DATASETS_OFFLINE"] = "1"
    for module, names in (("huggingface_hub.constants", ["HF_HUB_OFFLINE"]), ("datasets.config", ["HF_HUB_OFFLINE"])):
        loaded = sys.modules.get(module)
        for name in names:
            if loaded is not None and hasattr(loaded, name):
                setattr(loaded, name, True)


@cache
def is_reachable() -> bool:
    """Whether the hub answers, asked once with a short timeout; its client would retry for most of a minute."""
    import requests
    from huggingface_hub import constants

    try:
        requests.head(constants.ENDPOINT, timeout=5, allow_redirects=False)
    except requests.RequestException:
        return False
    return True


def stay_off_unreachable() -> None:
    """Use only what the caches hold if the hub does not answer; its client would retry each file for long."""
    if not is_offline() and not is_reachable():
        go_offline()


def is_offline() -> bool:
    """Whether this process must stay off the network; for libraries that do not check this themselves."""
    return os.environ.get("HF_HUB_OFFLINE", "") in ("1", "true", "TRUE", "ON", "YES")
