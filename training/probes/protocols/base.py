"""What a protocol is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TypeVar

from training.probes.outcome import Outcome
from training.probes.passes import Passes, Request


class Protocol(ABC):
    """One protocol on one set of images: it says what it wants to see, then measures."""

    prefix: str = ""
    """What the names of its measures begin with (:attr:`material.Task.prefix`)."""

    @abstractmethod
    def requests(self) -> tuple[Request, ...]:
        """The lists of images that it looks at, and how."""

    @abstractmethod
    def measure(self, passes: Passes) -> Outcome:
        """What it finds; names of measures without the prefix."""

    def applies(self, passes: Passes) -> bool:
        """Whether ``passes`` can show what it looks at: raw pixels and colours have no natively shown images."""
        return passes.dense or all(request.view.kind != "native" for request in self.requests())


_Value = TypeVar("_Value")


def _named(prefix: str, values: Mapping[str, _Value]) -> dict[str, _Value]:
    return {prefix + name: value for name, value in values.items()}


def run(protocols: Iterable[Protocol], passes: Passes) -> Outcome:
    """All protocols that apply, one after the other, with prefixed names."""
    found = Outcome()
    for protocol in protocols:
        if protocol.applies(passes):
            part = protocol.measure(passes)
            found.measures |= _named(protocol.prefix, part.measures)
            found.items |= _named(protocol.prefix, part.items)
            found.details |= _named(protocol.prefix, part.details)
            found.shown |= _named(protocol.prefix, part.shown)
        passes.done(protocol.requests())
    return found
