"""What a step is: a name, typed settings, named inputs and one plain function. No orchestrator, nothing heavy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from foundry.errors import UserError
from foundry.settings import Settings

InputKind = Literal["result", "url", "model", "text"]


@dataclass(frozen=True)
class InputSpec:
    """One named input of a step.

    ``kind`` says how it is checked and how its digest is found: ``result`` is a folder that a step made (it has a
    ``manifest.json``), ``url`` anything that fsspec reaches, or ``sample:``; ``model`` a network (a training run, a
    folder in the Hugging Face layout or ``models:/NAME@ALIAS``; ``run`` gets the folder of its weights); ``text`` is a
    plain value, itself its digest (the champion's registry digest, for example).
    """

    name: str
    description: str
    required: bool = True
    kind: InputKind = "result"
    digest: Callable[[str], str] | None = None
    """``digest(url)`` names what is at the URL, where the plain content of its files is not what counts (a list of
    URLs, a folder with unreadable files). It raises :class:`UserError` where nothing is there."""
    several: bool = False
    """Whether there may be several, each with a label: ``run`` gets them as ``NAME.LABEL`` (see :func:`labelled`)."""


def labelled(value: str) -> dict[str, str]:
    """``LABEL=URL;LABEL=URL`` as a mapping; a URL without a label is called after its last part.

    Raises :class:`UserError` for a label that is given twice or is none (letters, digits, ``_`` and ``-``).
    """
    found: dict[str, str] = {}
    for entry in filter(None, map(str.strip, value.split(";"))):
        given = re.match(r"([A-Za-z0-9_-]+)=(.+)", entry)
        url = given[2] if given else entry
        last = re.split(r"[/:\\]", url.partition("?")[0].rstrip("/:"))[-1]
        label = given[1] if given else re.sub(r"[^A-Za-z0-9_-]+", "-", last.partition(".")[0]).strip("-")
        if not label:
            raise UserError(f"{entry}: give it a name, as in NAME={url}")
        if label in found:
            raise UserError(f"{entry}: '{label}' is given twice; give each its own name, as in NAME={url}")
        found[label] = url
    return found


@dataclass(frozen=True, kw_only=True)
class Step:
    """One step of the line. Every way in (KFP component, DVC stage, command line) runs the same ``run``."""

    name: str
    """The step's folder name under ``components/``, its section in params.yaml and its folder in the store."""
    summary: str
    """One line, shown by ``--help`` and the Kubeflow UI."""
    config: type[Settings]
    """Its section of params.yaml."""
    inputs: tuple[InputSpec, ...]
    """What it reads, in the order in which it is listed."""
    run: Callable[[Any, Mapping[str, str], Path], dict[str, Any]]
    """``run(config, inputs, output)``: reads the named folders or URLs, writes into the existing folder ``output``
    (which survives a kill: run again with the same folder it continues) and returns JSON-able metrics."""
    code: tuple[str, ...]
    """Modules or packages whose source, with all they import from this repository, is in the fingerprint. Of a
    package all modules count except the faces ``__main__`` and ``component``."""
    pure: bool = True
    """False for a step that acts on the world: it always runs, into a fresh folder, and is idempotent itself."""
    transient: tuple[str, ...] = ()
    """Dotted names of settings that do not change the result (workers, ports)."""
    environment: Callable[[Any], dict[str, Any]] | None = None
    """``environment(config)``: further facts that change the result (device, dtype, world size, versions)."""
    disk_bytes: Callable[[Any, Mapping[str, str]], int] | None = None
    """``disk_bytes(config, inputs)``: estimate of what the step writes, checked before it starts."""
    records: tuple[str, ...] = ()
    """fnmatch patterns of files that tell how the work went, not what it made (logs, timings). They are kept and
    listed in the manifest but are not part of the result's digest, so a repeated computation has the same digest."""

    shown: tuple[str, ...] = ()
    """Files of the result that people look at: a copy of each is kept with the tracking run that made it."""
    tracked: bool = True
    """Whether each call has a tracking run (False for the making of the embedded sample)."""

    def input(self, name: str) -> InputSpec:
        """The input called ``name`` (or ``NAME.LABEL``). Raises :class:`UserError` naming the nearest one."""
        family, dot, _ = name.partition(".")
        for spec in self.inputs:
            if spec.name == name or (dot and spec.several and spec.name == family):
                return spec
        names = [spec.name for spec in self.inputs]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        hint = f"did you mean '{near[0]}'?" if near else f"it has: {', '.join(names) or 'no inputs'}"
        raise UserError(f"{self.name}: no input named '{name}'; {hint}")

    def check_inputs(self, inputs: Mapping[str, str]) -> dict[str, str]:
        """``inputs`` without the optional ones left empty (or ``none``), of several each by its ``NAME.LABEL``.

        Raises :class:`UserError` for unknown and for missing ones.
        """
        given: dict[str, str] = {}
        for name, value in inputs.items():
            spec, text = self.input(name), str(value)
            if text in ("", "none", "None"):
                continue
            several = spec.several and name == spec.name
            own = {f"{name}.{label}": url for label, url in labelled(text).items()} if several else {name: text}
            if twice := sorted(own.keys() & given.keys()):
                raise UserError(f"{self.name}: input '{twice[0]}' is given twice")
            given |= own
        for spec in self.inputs:
            if spec.required and spec.name not in given:
                raise UserError(
                    f"{self.name}: input '{spec.name}' is missing ({spec.description}); give --input {spec.name}=URL"
                )
        return given
