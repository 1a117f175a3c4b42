"""Where MLflow keeps runs and models: its address, and making the database once, whoever comes first."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foundry.errors import UserError
from foundry.home import home

if TYPE_CHECKING:
    from mlflow import MlflowClient

EXPERIMENT = "dino-foundry"
"""Experiment of every run, unless ``MLFLOW_EXPERIMENT_NAME`` or ``MLFLOW_EXPERIMENT_ID`` names another."""


def tracking_uri() -> str:
    """``MLFLOW_TRACKING_URI``, else a SQLite file in the project's home. Relative SQLite paths become absolute."""
    uri = os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home() / 'mlflow' / 'mlflow.db'}"
    database = _sqlite_file(uri)
    return f"sqlite:///{database}" if database else uri


def client(uri: str | None = None) -> MlflowClient:
    """An MLflow client for tracking and registry at ``uri`` (default :func:`tracking_uri`). Opens no connection."""
    _prepare_mlflow()
    from mlflow import MlflowClient

    uri = uri or tracking_uri()
    return MlflowClient(tracking_uri=uri, registry_uri=os.environ.get("MLFLOW_REGISTRY_URI") or uri)


@contextlib.contextmanager
def default_address(uri: str) -> Iterator[None]:
    """Make ``uri`` the address that MLflow's own functions use meanwhile: some parts of its registry know no other."""
    import mlflow

    before = os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None)
        if before is not None:
            os.environ["MLFLOW_TRACKING_URI"] = before


def initialise(uri: str | None = None) -> str:
    """Make the database and the experiment where they are missing; return the experiment's id.

    Safe to call from several processes at once: two that create MLflow's SQLite tables together leave a database that
    nothing opens again, so this happens under a file lock, in a temporary file that is renamed when complete.

    Raises:
        UserError: the address is no tracking address, nothing answers there, or the database cannot be used.
    """
    uri = uri or tracking_uri()
    _check_scheme(uri)
    _prepare_mlflow()
    database = _sqlite_file(uri)
    lock_folder = database.parent if database else home() / "mlflow"
    artifacts = _default_artifacts(uri)
    try:
        lock_folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise UserError(f"tracking URI {shown(uri)}: {lock_folder} is not a folder") from None
    with locked(lock_folder / ".initialise.lock"), plain_address_errors(uri):
        if uri.startswith(("http://", "https://")):
            _check_server(uri)
        if database and not database.exists():
            _create_database(database, artifacts)
        return _experiment_id(client(uri), artifacts)


def _prepare_mlflow() -> None:
    """Settle what MLflow reads when it is imported: no telemetry, no printing, no minutes of retries."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    # The database layer prints a traceback before it raises; what it raises is reported in one line here.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL + 1)
    logging.getLogger("alembic").setLevel(logging.ERROR)


def _check_scheme(uri: str) -> None:
    scheme = uri.partition(":")[0].partition("+")[0] if ":" in uri else ""
    if scheme in ("", "file"):
        raise UserError(
            f"tracking URI {shown(uri)}: MLflow keeps runs in a database or on a server; "
            "set MLFLOW_TRACKING_URI to sqlite:///FOLDER/mlflow.db or http://HOST:PORT, or unset it"
        )
    known = ("sqlite", "postgresql", "mysql", "mssql", "http", "https", "databricks")
    if scheme not in known:
        raise UserError(f"tracking URI {shown(uri)}: unknown scheme '{scheme}'; MLflow knows {', '.join(known)}")


def _check_server(uri: str) -> None:
    import urllib.error
    import urllib.request

    try:
        urllib.request.urlopen(uri.rstrip("/") + "/health", timeout=10).close()
    except urllib.error.HTTPError as error:  # something answers; whether it is MLflow shows at the first request
        if error.code in (502, 503, 504):
            raise UserError(f"tracking URI {shown(uri)}: the server answers {error.code} {error.reason}") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"tracking URI {shown(uri)}: no MLflow server answers there ({reason})") from None


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith("sqlite:"):
        return None
    path = uri.partition("://")[2].partition("?")[0][1:]  # sqlite:///relative, sqlite:////absolute
    if not path:
        raise UserError(f"tracking URI {shown(uri)}: name a file, as in sqlite:///FOLDER/mlflow.db")
    return Path(path).absolute()


def _default_artifacts(uri: str) -> str | None:
    """Where the experiment keeps files; a server decides that itself."""
    if uri.startswith(("http://", "https://", "databricks")):
        return None
    database = _sqlite_file(uri)
    folder = database.parent / "artifacts" if database else home() / "mlflow" / "artifacts"
    return folder.absolute().as_uri()


def _create_database(database: Path, artifacts: str | None) -> None:
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    unfinished = database.with_name(f".{database.name}.unfinished")
    for leftover in database.parent.glob(f".{database.name}.unfinished*"):
        leftover.unlink()

    def without_waiting(connection: Any, record: object) -> None:
        connection.execute("PRAGMA synchronous = OFF")  # some hundred migrations; flushed once, below

    event.listen(Engine, "connect", without_waiting)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            store = SqlAlchemyStore(f"sqlite:///{unfinished}", artifacts)
        store.engine.dispose()
    finally:
        event.remove(Engine, "connect", without_waiting)
    with unfinished.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, database)


def _experiment_id(tracking_client: MlflowClient, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
        tracking_client.get_experiment(given)
        return given
    name = os.environ.get("MLFLOW_EXPERIMENT_NAME") or EXPERIMENT
    experiment = tracking_client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return str(tracking_client.create_experiment(name, artifact_location=artifacts))
        except MlflowException:
            experiment = tracking_client.get_experiment_by_name(name)  # another machine was quicker
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        restore = f"mlflow experiments restore -x {experiment.experiment_id}"
        raise UserError(
            f"MLflow experiment '{name}' is deleted; restore it ({restore}) or set another MLFLOW_EXPERIMENT_NAME"
        )
    return str(experiment.experiment_id)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the file lock ``path``, which other processes of this machine wait for."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextlib.contextmanager
def plain_address_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow and its drivers raise about an address into one plain line."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except ModuleNotFoundError as error:
        raise UserError(f"tracking URI {shown(uri)}: needs the Python package '{error.name}'; install it") from None
    except MlflowException as error:
        raise UserError(f"tracking URI {shown(uri)}: {first_line(error)}") from error
    except Exception as error:
        if not type(error).__module__.startswith(("sqlalchemy", "requests", "urllib3")):
            raise
        raise UserError(f"tracking URI {shown(uri)}: {first_line(error)}") from error


def shown(uri: str) -> str:
    """``uri`` for messages: without its password."""
    return re.sub(r"(://[^/:@]*):[^/@]*@", r"\1:***@", uri)


def first_line(error: BaseException) -> str:
    """What an exception says, in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:400]
