"""Settings of adoption."""

from __future__ import annotations

from typing import Literal

from foundry.settings import Settings


class AdoptionConfig(Settings):
    """Section ``adoption`` of params.yaml."""

    heads: Literal["keep", "anew"] = "keep"
    """Whether projection heads that come with the network teach (keep), or heads that distillation first trains on it
    (anew), as it does for a network that comes without."""
