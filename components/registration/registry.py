"""Champions and challengers in the MLflow registry, and the history of how ``champion`` came to stand where it does.

The history lives in the registry itself, as tags ``foundry.history.<time>`` of the registered model, so that everyone
who reaches the registry sees the same one. An alias moved by other hands (in MLflow's own pages, say) is noticed and
entered when the registry is next changed from here.
"""

from __future__ import annotations

import datetime
import difflib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from components.common.mlflow_store import client, initialise, plain_address_errors, tracking_uri
from components.common.tracking import TAG_PREFIX
from foundry.errors import UserError

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

CHAMPION = "champion"
"""Alias of the version that is served."""
CHALLENGER = "challenger"
"""Alias of the version that was registered last."""
PREVIOUS = "previous"
"""Alias of the version that a rollback returns to; there is none where a rollback has nothing to return to."""
EXPORT_DIGEST = f"{TAG_PREFIX}export_digest"
"""Tag of a version: digest of the exported folder that it holds."""
VERDICT = f"{TAG_PREFIX}verdict"
"""Tag of a version: ``passed`` or ``failed``."""
PREVIOUS_CHAMPION = f"{TAG_PREFIX}previous_champion"
"""Tag of a champion: the version it took the alias from."""
LOGGED_MODEL = "models:/"
"""The source of a version is this and the id of its logged model."""
_HISTORY = f"{TAG_PREFIX}history."
_WHY_LIMIT, _OVERRULED_LIMIT = 1500, 2500  # characters; MLflow keeps 5000 of the whole entry

Action = Literal["verdict", "promote", "rollback", "outside"]


@dataclass(frozen=True)
class Move:
    """One move of the alias ``champion``."""

    time: str
    """ISO 8601, UTC."""
    action: Action
    """Who moved it: a passed verdict, ``promote``, ``rollback``, or something outside this project."""
    version: str
    """The champion since then."""
    previous: str | None
    """The champion until then."""
    why: str
    verdict: str
    """What the report said of ``version`` at that time: passed, failed or unknown."""
    overruled: str = ""
    """The failed gates of ``version`` that a person promoted it in spite of, in words."""


class ModelRegistry:
    """The registered models of one MLflow registry.

    Every method raises :class:`UserError` for names and versions that do not exist, naming the nearest, and for a
    registry that does not answer.
    """

    def __init__(self, uri: str | None = None) -> None:
        self.uri = uri or tracking_uri()
        self.experiment_id = initialise(self.uri)
        self.client = client(self.uri)

    def model_names(self) -> list[str]:
        """Names of all registered models, sorted."""
        names, token = [], None
        while True:
            with plain_address_errors(self.uri):
                page = self.client.search_registered_models(max_results=500, page_token=token)
            names += [model.name for model in page]
            token = page.token
            if not token:
                return sorted(names)

    def find_model(self, name: str) -> RegisteredModel | None:
        """The registered model of that name, or None."""
        from mlflow.exceptions import MlflowException

        with plain_address_errors(self.uri):
            try:
                return self.client.get_registered_model(name)
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return None
                raise

    def model(self, name: str) -> RegisteredModel:
        """The registered model of that name."""
        found = self.find_model(name)
        if found is not None:
            return found
        names = self.model_names()
        near = [known for known in names if known.endswith(f"-{name}")] or difflib.get_close_matches(name, names, n=1)
        if near:
            hint = f"did you mean '{near[0]}'?"
        else:
            hint = f"there are: {', '.join(names)}" if names else "none is registered yet; 'make run' registers some"
        raise UserError(f"registered model '{name}': no such model; {hint}")

    def version(self, name: str, version: str) -> ModelVersion:
        """A version by number ('3' or 'v3') or by alias."""
        from mlflow.exceptions import MlflowException

        model = self.model(name)
        number = model.aliases.get(version, version.removeprefix("v"))
        if str(number).isdigit():
            with plain_address_errors(self.uri):
                try:
                    return self.client.get_model_version(name, str(int(number)))
                except MlflowException as error:
                    if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                        raise
        numbers = [found.version for found in self.versions(name)]
        known = [*sorted(model.aliases), *numbers]
        near = difflib.get_close_matches(version, list(model.aliases), n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"there are: {', '.join(map(str, known)) or 'none'}"
        raise UserError(f"registered model '{name}': no version '{version}'; {hint}")

    def versions(self, name: str, tag: tuple[str, str] | None = None) -> list[ModelVersion]:
        """All versions of ``name`` that are ready, oldest first; those with the tag (key, value) where one is given."""
        query = f"name = '{name}'" + (f" and tag.`{tag[0]}` = '{tag[1]}'" if tag else "")
        found: list[ModelVersion] = []
        token = None
        while True:
            with plain_address_errors(self.uri):
                page = self.client.search_model_versions(query, max_results=500, page_token=token)
            found += [version for version in page if version.status == "READY"]
            token = page.token
            if not token:
                return sorted(found, key=lambda version: int(version.version))

    def champion(self, name: str) -> str | None:
        """Number of the champion, or None."""
        model = self.find_model(name)
        number = model.aliases.get(CHAMPION) if model else None
        return None if number is None else str(number)

    def previous_champion(self, name: str) -> str | None:
        """The champion that a rollback returns to: the one before, moves that were rolled back not counted."""
        model = self.find_model(name)
        if model is None:
            return None
        existing = {str(version.version) for version in self.versions(name)}
        stack = [number for number in champion_stack(self._moves(model)) if number in existing]
        return stack[-2] if len(stack) > 1 else None

    def history(self, name: str) -> list[Move]:
        """Every move of ``champion``, oldest first; one made by other hands is listed with the time it was noticed."""
        return self._moves(self.model(name))

    def promote(
        self,
        name: str,
        version: str,
        why: str,
        *,
        action: Action = "promote",
        verdict: str | None = None,
        overruled: str = "",
    ) -> Move | None:
        """Move ``champion`` to a version (number or alias) and enter it in the history; None where it stood there.

        ``previous`` then stands at the version that a rollback would return to.
        """
        model = self.model(name)
        target = self.version(name, version)
        moves = self._moves(model)
        for move in moves:
            if move.action == "outside":
                self._enter(name, move)
        current = model.aliases.get(CHAMPION)
        if current is not None and str(current) == str(target.version):
            return None
        move = Move(
            time=_now(),
            action=action,
            version=str(target.version),
            previous=None if current is None else str(current),
            why=why[:_WHY_LIMIT],
            verdict=verdict or target.tags.get(VERDICT, "unknown"),
            overruled=overruled[:_OVERRULED_LIMIT],
        )
        with plain_address_errors(self.uri):
            self.client.set_registered_model_alias(name, CHAMPION, move.version)
            if action != "rollback" and move.previous is not None:
                self.client.set_model_version_tag(name, move.version, PREVIOUS_CHAMPION, move.previous)
            self._enter(name, move)
        self._point_previous(name)
        return move

    def _point_previous(self, name: str) -> None:
        model, target = self.model(name), self.previous_champion(name)
        standing = model.aliases.get(PREVIOUS)
        with plain_address_errors(self.uri):
            if target is not None and target != str(standing):
                self.client.set_registered_model_alias(name, PREVIOUS, target)
            elif target is None and standing is not None:
                self.client.delete_registered_model_alias(name, PREVIOUS)

    def rollback(self, name: str, why: str) -> Move:
        """Move ``champion`` back to the one before."""
        self.model(name)
        if self.champion(name) is None:
            raise UserError(f"registered model '{name}': it has no champion to roll back from")
        previous = self.previous_champion(name)
        if previous is None:
            raise UserError(
                f"registered model '{name}': version {self.champion(name)} is its first champion; none before it"
            )
        move = self.promote(name, previous, why, action="rollback")
        assert move is not None
        return move

    def _moves(self, model: RegisteredModel) -> list[Move]:
        rows = sorted((key, value) for key, value in model.tags.items() if key.startswith(_HISTORY))
        moves = [Move(**json.loads(value)) for _, value in rows]
        current = model.aliases.get(CHAMPION)
        known = moves[-1].version if moves else None
        if current is not None and str(current) != known:
            why = "the alias was found moved by other means"
            moves.append(Move(_now(), "outside", str(current), known, why, "unknown"))
        return moves

    def _enter(self, name: str, move: Move) -> None:
        key = f"{_HISTORY}{move.time}"
        self.client.set_registered_model_tag(name, key, json.dumps(asdict(move), sort_keys=True, ensure_ascii=False))


def champion_stack(moves: list[Move]) -> list[str]:
    """Champions that a series of rollbacks would visit, the present one last."""
    stack: list[str] = []
    for move in moves:
        if move.action == "rollback":
            while stack and stack[-1] != move.version:
                stack.pop()
        if not stack or stack[-1] != move.version:
            stack.append(move.version)
    return stack


def describe_version(version: ModelVersion) -> dict[str, Any]:
    """What a version says of itself, JSON-able: number, aliases, run, digest and the tags ``foundry.*``."""
    tags: Mapping[str, str] = version.tags
    return {
        "model": version.name,
        "version": str(version.version),
        "aliases": sorted(version.aliases),
        "run_id": version.run_id,
        "model_id": version.source.removeprefix(LOGGED_MODEL) if version.source.startswith(LOGGED_MODEL) else None,
        "digest": tags.get(EXPORT_DIGEST, ""),
        "tags": {
            key.removeprefix(TAG_PREFIX): value for key, value in sorted(tags.items()) if key.startswith(TAG_PREFIX)
        },
    }


def _now() -> str:
    return f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
