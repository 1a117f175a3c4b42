"""What an increment must have in common with the dataset that it adds to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from components.common.model_inputs import network_folder
from components.curation.bootstrap import FOLDER as BOOTSTRAP
from components.curation.config import CurationConfig
from components.curation.previous import Previous
from components.curation.selection import BALANCED
from components.curation.sources import labels_of
from components.curation.space import BackboneSpace, DescriptorSpace, Space, given_space
from foundry.errors import UserError

MAY_DIFFER = ("balance", "shard_mib")
"""Settings in which an increment may differ from the dataset that it adds to."""


def check_parts(inputs: Mapping[str, str], previous: Previous) -> None:
    """Raise :class:`UserError` where the dataset has, or would get, a part that an increment cannot add to."""
    url, others = inputs["previous"], [name for name in previous.parts if name != BALANCED]
    if others:
        raise UserError(
            f"{url}: has the part {others[0]}; an increment adds to the balanced part alone; set curation.anew=true to "
            "curate the whole pool"
        )
    for name in ("seeds", "raw"):
        if labels_of(inputs, name):
            raise UserError(
                f"--input {name}: an increment adds to the balanced part alone; set curation.anew=true to curate the "
                "whole pool"
            )


def same_space(config: CurationConfig, inputs: Mapping[str, str], previous: Previous, work: Path) -> Space:
    """The space of the vectors of ``previous``; of a network, only what is asked for is embedded.

    Raises :class:`UserError` where the inputs name another.
    """
    was = previous.embedding
    space = given_space(config, inputs, work, whole=False)
    if space is None and was["kind"] == BOOTSTRAP:
        network = network_folder(str(previous.dataset.folder / BOOTSTRAP))
        space = BackboneSpace(config, network, BOOTSTRAP, work, whole=False)
    elif space is None:
        space = DescriptorSpace(config.clusters.components, previous.index.concepts.projection)
    if {**space.facts, "kind": ""} != {**was, "kind": ""}:  # a network is the same, however it is named
        raise UserError(
            f"{inputs['previous']}: was curated by {_told(was)}, here it is {_told(space.facts)}; give what it was "
            "curated by, or set curation.anew=true to curate the whole pool"
        )
    return space


def _told(facts: Mapping[str, Any]) -> str:
    """What the vectors of a dataset are, in words."""
    if "network" in facts:
        return f"the {facts['kind']} {facts['network'][:12]}"
    return f"the embeddings {facts['embeddings'][:12]}" if "embeddings" in facts else "the descriptor made by hand"


def check_settings(config: CurationConfig, previous: Previous, url: str) -> None:
    """Raise :class:`UserError` where a setting differs that an increment cannot change."""
    was, now = previous.dataset.description["curation"]["config"], config.lasting()
    for name in sorted({*was, *now} - set(MAY_DIFFER)):
        if was.get(name) != now.get(name):
            raise UserError(
                f"{url}: was curated with other settings in 'curation.{name}' "
                f"({_difference(was.get(name), now.get(name))}); set them back, or set curation.anew=true to curate "
                "the whole pool with these"
            )
    if was["balance"]["copies"] > config.balance.copies:
        raise UserError(
            f"{url}: was curated with balance.copies={was['balance']['copies']}; an increment cannot have fewer"
        )


def _difference(was: Any, now: Any) -> str:
    if isinstance(was, Mapping) and isinstance(now, Mapping):
        name = next(name for name in sorted({*was, *now}) if was.get(name) != now.get(name))
        return f"{name}: {_difference(was.get(name), now.get(name))}"
    return f"{was} there, {now} here"
