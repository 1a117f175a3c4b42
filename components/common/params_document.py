"""The text of ``params.yaml``: every setting with its default and its description, from the settings classes.

``python -m components.common.params_document`` prints it, for instance to add the comments of new settings to a file.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from components.common.params import Params
from foundry.settings import Settings

WIDTH = 118
HEADING = (
    "The one place where a run is described. What is left out has the default shown here. Change a value here, or for "
    'one run with --set section.name=value (make run SET="section.name=value"). A changed value makes again what '
    "depends on it, and nothing else."
)


def default_document() -> str:
    """``params.yaml`` with all defaults, a comment above each setting."""
    return "\n".join([*_comment(HEADING, ""), *_lines(Params(), "")]) + "\n"


def _lines(settings: BaseModel, indent: str) -> Iterator[str]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        if not indent:
            yield ""
        yield from _comment(field.description or type(value).__doc__ or "", indent)
        if isinstance(value, Settings):
            yield f"{indent}{name}:"
            yield from _lines(value, indent + "  ")
        else:
            yield f"{indent}{name}: {_yaml(value)}"


def _comment(text: str, indent: str) -> list[str]:
    words = " ".join(text.replace("``", "").split())
    return textwrap.wrap(words, WIDTH, initial_indent=f"{indent}# ", subsequent_indent=f"{indent}# ")


def _yaml(value: Any) -> str:
    """A value in YAML's flow style, which JSON is; plain words stay unquoted."""
    if isinstance(value, str) and value.replace("_", "").replace("-", "").isalnum() and not value.isdigit():
        return value
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json") if isinstance(value, Settings) else list(value)


if __name__ == "__main__":
    print(default_document(), end="")
