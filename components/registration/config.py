"""Settings of registration."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from foundry.settings import Settings


class RegistrationConfig(Settings):
    """Section ``registration`` of params.yaml."""

    prefix: Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9_-]*[a-z0-9])?$")] = "dino-foundry"
    """A student ``vit`` becomes the registered model ``<prefix>-vit``, and is served under that name."""
    golden_images: Annotated[int, Field(ge=1, le=256)] = 8
    """Images of the curated dataset, spread over its clusters, whose embeddings are kept with each version: it is
    served only if the server gives the same. Variants of one of them in every kind of file are added."""
    golden_max_bytes: Annotated[int, Field(ge=1024)] = 1 << 20
    """Encoded images above this size are not taken as golden images while there are smaller ones."""
    licence: str = "not stated"
    """Licence of the weights, for the model card: weights follow the terms of the images they were learnt from."""

    def model_name(self, student: str) -> str:
        """Name of the registered model of ``student``."""
        return f"{self.prefix}-{student}"
