"""Settings of deployment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from foundry.settings import Settings

Port = Annotated[int, Field(ge=0, le=65535)]


class DeploymentConfig(Settings):
    """Section ``deployment`` of params.yaml."""

    serve: Literal["query", "keep"] = "query"
    """``query``: ask the published models once, then stop the server that was started for it. ``keep``: leave it up."""
    server: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")] = "default"
    """Name of the embedded server; one that runs under this name is used."""
    repository: str = ""
    """Folder of the Triton model repository; empty: ``model_repository`` in the project's home."""
    http_port: Port = 0
    """Port of HTTP requests on 127.0.0.1; 0: a free one."""
    grpc_port: Port = 0
    """Port of gRPC requests on 127.0.0.1; 0: a free one."""
    metrics_port: Port = 0
    """Port of the metrics on 127.0.0.1; 0: a free one."""
    start_timeout: Annotated[float, Field(gt=0)] = 60.0
    """Seconds the server may take to start."""
    tolerance: Annotated[float, Field(gt=0)] = 1e-4
    """Largest difference of a served embedding to the recorded one, relative to its largest value (at least 1)."""
    latency_budget_ms: Annotated[float, Field(ge=0)] = 0.0
    """Longest median of the golden images asked one at a time of a candidate, in milliseconds; 0: none."""
    error_rate_margin: Annotated[float, Field(ge=0, le=1)] = 0.05
    """`watch` rolls a version back whose share of errors is larger than that before the switch by more than this."""
    observe_seconds: Annotated[float, Field(ge=0)] = 300.0
    """How long `watch` looks at the errors of a version that took over; 0: not at all."""
    observe_requests: Annotated[int, Field(ge=1)] = 20
    """Requests that it must have had before its share of errors is judged."""
    keep_versions: Annotated[int, Field(ge=1, le=16)] = 2
    """Versions of a model served side by side, the champion and those before it; each takes its own memory."""
    max_batch_size: Annotated[int, Field(ge=1, le=1024)] = 16
    """Most images of one request, and of the batch that requests are joined to."""
    queue_delay_microseconds: Annotated[int, Field(ge=0)] = 500
    """How long a request may wait for others to join its batch."""
    max_queue_size: Annotated[int, Field(ge=8)] = 256
    """Waiting requests beyond which further ones are turned away (status 503)."""
    instances: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes of each version. instances x threads should not pass the number of cores."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of one instance; 0: cores / instances."""
    max_image_bytes: Annotated[int, Field(ge=1)] = 32 << 20
    """Encoded size above which an image is refused."""
    max_image_pixels: Annotated[int, Field(ge=1)] = 2**26
    """Width x height above which an image is refused, before it is decoded."""
