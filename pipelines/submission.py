"""The line sent to a Kubeflow Pipelines server."""

from __future__ import annotations

import contextlib
import os
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path

from components.common.params import Params
from foundry.errors import UserError
from pipelines.compilation import compile_line

HOST_VARIABLE = "KFP_HOST"
NAMESPACE_VARIABLE = "KFP_NAMESPACE"
TOKEN_VARIABLE = "KFP_TOKEN"


@dataclass(frozen=True)
class Destination:
    """Where to submit."""

    host: str | None
    """URL of the KFP API; None reads KFP_HOST."""
    namespace: str | None = None
    """Profile namespace of a multi-user Kubeflow; None reads KFP_NAMESPACE."""
    experiment: str = "dino-foundry"
    run_name: str | None = None
    service_account: str | None = None


def submit_line(params: Params, destination: Destination, image: str | None = None) -> str:
    """Submit one run with ``params``; returns its URL. A bearer token is read from KFP_TOKEN.

    Raises:
        UserError: no host is named, it does not answer, or it refuses.
    """
    host = destination.host or os.environ.get(HOST_VARIABLE)
    if not host:
        raise UserError(
            "submit: no Kubeflow Pipelines server is named; give --host https://HOST/pipeline or set KFP_HOST "
            "(`python -m pipelines compile` writes a file for the upload page instead)"
        )
    if not host.startswith(("http://", "https://")):
        raise UserError(f"submit: --host {host}: write it with http:// or https://")
    _check_reachable_inputs(params)
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(), contextlib.redirect_stdout(None):
        package = compile_line(params, Path(scratch) / "line.yaml", image)
        warnings.simplefilter("ignore")  # kfp on its own versions
        import kfp
        from kfp_server_api.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        try:
            client = kfp.Client(
                host=host,
                namespace=destination.namespace or os.environ.get(NAMESPACE_VARIABLE) or "kubeflow",
                existing_token=os.environ.get(TOKEN_VARIABLE),
            )
            run = client.create_run_from_pipeline_package(
                str(package),
                arguments={},
                run_name=destination.run_name,
                experiment_name=destination.experiment,
                namespace=destination.namespace or os.environ.get(NAMESPACE_VARIABLE),
                service_account=destination.service_account,
                enable_caching=False,
            )
        except ApiException as error:
            raise UserError(f"submit: {host} refused: {error.status} {error.reason}") from error
        except (HTTPError, OSError, ValueError) as error:
            raise UserError(f"submit: {host} does not answer ({_reason(error)})") from error
    return f"{host.rstrip('/')}/#/runs/details/{run.run_id}"


def _check_reachable_inputs(params: Params) -> None:
    """A folder of this machine means nothing to a pod."""
    from components.common.step import labelled

    for name, value in params.inputs.model_dump().items():
        for url in labelled(value).values() if name in ("seeds", "raw", "benchmarks", "peers") else [value]:
            known = url in ("sample:", "sample:evaluation", "auto", "none", "")
            if name in ("teacher", "backbone", "peers") and url and not url.startswith(("/foundry/", "models:/")):
                raise UserError(
                    f"submit: inputs.{name}={url}: pods read a network from below /foundry, their shared volume, or "
                    "from the registry (models:/NAME@ALIAS)"
                )
            if not known and "://" not in url and not url.startswith(("/foundry/", "models:/")):
                raise UserError(
                    f"submit: inputs.{name}={url}: a path of this machine; pods need a URL (s3://bucket/folder) or a "
                    "path below /foundry, their shared volume"
                )


def _reason(error: BaseException) -> str:
    """The innermost cause that the HTTP library names, on one line."""
    reason = getattr(error, "reason", None) or error
    return (str(reason).strip().splitlines() or [type(error).__name__])[0].rpartition(": ")[2][:200]
