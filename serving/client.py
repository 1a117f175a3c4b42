"""Asking a served model for embeddings, over HTTP with KServe v2 and its binary tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from foundry.errors import UserError
from serving.triton_backend.tensors import EMBEDDING, IMAGE, MODEL_DIGEST, PATCH_FEATURES, PIXELS

if TYPE_CHECKING:
    import numpy as np

CONCURRENCY = 8
"""Requests in flight: enough for the server to join them to batches."""


class RefusedImage(UserError):
    """The server answered that it does not take this input, and why."""


class ServerBusy(UserError):
    """As many requests wait already as may; this one was turned away."""


@dataclass(frozen=True)
class Embeddings:
    """What a model answered for B images."""

    embedding: np.ndarray
    """float32 (B, D)."""
    patch_features: np.ndarray | None
    """float32 (B, N, D), where they were asked for."""
    model: str
    version: int
    """The version that answered."""
    digest: str
    """Digest of its weights and preprocessing."""


class EmbeddingClient:
    """A model of the server at ``url`` ('http://127.0.0.1:8000' or '127.0.0.1:8000'). Use as a context manager."""

    def __init__(self, url: str, model: str, version: int | None = None, timeout: float = 60.0) -> None:
        from tritonclient.http import InferenceServerClient

        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url}: not the address of a server; write it as http://HOST:PORT")
        self.url, self.model, self._version = url, model, "" if version is None else str(version)
        self._client = InferenceServerClient(
            parts.netloc + parts.path.rstrip("/"),
            ssl=parts.scheme == "https",
            concurrency=CONCURRENCY,
            connection_timeout=timeout,
            network_timeout=timeout,
        )

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def embed(self, images: Sequence[bytes], patch_features: bool = False) -> Embeddings:
        """Embeddings of encoded images, sent in one request.

        Raises :class:`RefusedImage` with the server's reason where it refuses one of them, :class:`UserError` where
        the server or the model is not there.
        """
        import numpy as np

        array = np.empty((len(images), 1), dtype=object)
        array[:, 0] = images
        return self._infer(IMAGE, "BYTES", array, patch_features)

    def embed_pixels(self, pixels_BCHW: np.ndarray, patch_features: bool = False) -> Embeddings:
        """Embeddings of float32 (B, 3, S, S) that is resized, cropped and normalised already."""
        import numpy as np

        return self._infer(PIXELS, "FP32", np.ascontiguousarray(pixels_BCHW, dtype=np.float32), patch_features)

    def embed_each(self, images: Sequence[bytes], patch_features: bool = False) -> Iterator[Embeddings | RefusedImage]:
        """For each image, in order, its answer or its refusal. One request an image, several of them in flight."""
        import numpy as np
        from gevent.pool import Pool  # type: ignore[import-untyped]

        def ask(image: bytes) -> Embeddings | UserError:
            try:
                return self._infer(IMAGE, "BYTES", np.array([[image]], dtype=object), patch_features)
            except UserError as error:  # what leaves a greenlet is printed with its traceback
                return error

        # The client's own async_infer sleeps 10 ms a request; greenlets around its plain call do not.
        for answer in Pool(CONCURRENCY).imap(ask, images, maxsize=CONCURRENCY):
            if isinstance(answer, UserError) and not isinstance(answer, RefusedImage):
                raise answer
            yield answer

    def _infer(self, name: str, datatype: str, array: np.ndarray, patch_features: bool) -> Embeddings:
        from tritonclient.http import InferInput, InferRequestedOutput
        from tritonclient.utils import InferenceServerException

        tensor = InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        names = [EMBEDDING, MODEL_DIGEST] + ([PATCH_FEATURES] if patch_features else [])
        outputs = [InferRequestedOutput(output) for output in names]
        try:
            result = self._client.infer(self.model, [tensor], model_version=self._version, outputs=outputs)
        except InferenceServerException as error:
            message = " ".join(str(error.message() or error).split())
            message = message.removeprefix("[request id: <id_unknown>] ")
            if error.status() == "400":
                raise RefusedImage(message) from None
            kind = ServerBusy if error.status() == "503" else UserError
            raise kind(f"{self.url}: model '{self.model}': {message}") from None
        except (OSError, EOFError) as error:
            raise UserError(f"{self.url}: no server answers there ({error})") from None
        response = result.get_response()
        return Embeddings(
            embedding=result.as_numpy(EMBEDDING),
            patch_features=result.as_numpy(PATCH_FEATURES) if patch_features else None,
            model=response["model_name"],
            version=int(response["model_version"]),
            digest=result.as_numpy(MODEL_DIGEST)[0, 0].decode(),
        )
