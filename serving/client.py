"""Asking a served model for embeddings, over HTTP with KServe v2 and its binary tensors."""

from __future__ import annotations

import contextlib
import http.client
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


_PASSING = ("429", "500", "502", "503", "504")
"""Statuses of a server that is full, starts, stops, or whose model process died."""


class RefusedImage(UserError):
    """The server answered that it does not take this input, and why."""


class NotServed(UserError):
    """The server knows no such model or version; right after its start, or not yet."""


class Unanswered(UserError):
    """No answer this time: nobody listens, the connection broke, the server is full or a part of it is dead.

    The same request may be answered later.
    """


class ServerBusy(Unanswered):
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

    def __init__(
        self,
        url: str,
        model: str,
        version: int | None = None,
        timeout: float = 60.0,
        concurrency: int = CONCURRENCY,
    ) -> None:
        from tritonclient.http import InferenceServerClient

        parts = urlsplit(url if "://" in url else f"http://{url}")
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UserError(f"{url}: not the address of a server; write it as http://HOST:PORT")
        self.url, self.model, self._version = url, model, version
        self._client = InferenceServerClient(
            parts.netloc + parts.path.rstrip("/"),
            ssl=parts.scheme == "https",
            concurrency=concurrency,
            connection_timeout=timeout,
            network_timeout=timeout,
        )

    def __enter__(self) -> EmbeddingClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def embed(self, images: Sequence[bytes], patch_features: bool = False, version: int | None = None) -> Embeddings:
        """Embeddings of encoded images, sent in one request; ``version`` is asked instead of the client's own.

        Raises :class:`RefusedImage` with the server's reason where it refuses one of them, :class:`NotServed` where the
        model is not there, :class:`Unanswered` where the server is not there or cannot answer now.
        """
        import numpy as np

        array = np.empty((len(images), 1), dtype=object)
        array[:, 0] = images
        return self._infer(IMAGE, "BYTES", array, patch_features, version)

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

    def versions(self) -> list[int]:
        """The versions of the model that answer now, ascending.

        Raises :class:`UserError` where the model takes no encoded images or gives no embeddings.
        """
        with self._plain_errors(about_images=False):
            metadata = self._client.get_model_metadata(self.model)
        for kind, names in (("inputs", {IMAGE}), ("outputs", {EMBEDDING, MODEL_DIGEST})):
            absent = names - {tensor["name"] for tensor in metadata.get(kind, [])}
            if absent:
                raise UserError(
                    f"{self.url}: model '{self.model}' has no '{min(absent)}' among its {kind}; name one that embeds"
                )
        return sorted(int(version) for version in metadata.get("versions", []))

    def largest_request(self) -> int:
        """Most images that the model takes in one request."""
        with self._plain_errors(about_images=False):
            return max(1, int(self._client.get_model_config(self.model).get("max_batch_size", 1)))

    def _infer(
        self, name: str, datatype: str, array: np.ndarray, patch_features: bool, version: int | None = None
    ) -> Embeddings:
        from tritonclient.http import InferInput, InferRequestedOutput

        tensor = InferInput(name, list(array.shape), datatype)
        tensor.set_data_from_numpy(array)
        names = [EMBEDDING, MODEL_DIGEST] + ([PATCH_FEATURES] if patch_features else [])
        outputs = [InferRequestedOutput(output) for output in names]
        asked = self._version if version is None else version
        with self._plain_errors():
            result = self._client.infer(
                self.model, [tensor], model_version="" if asked is None else str(asked), outputs=outputs
            )
        response = result.get_response()
        return Embeddings(
            embedding=result.as_numpy(EMBEDDING),
            patch_features=result.as_numpy(PATCH_FEATURES) if patch_features else None,
            model=response["model_name"],
            version=int(response["model_version"]),
            digest=result.as_numpy(MODEL_DIGEST)[0, 0].decode(),
        )

    @contextlib.contextmanager
    def _plain_errors(self, about_images: bool = True) -> Iterator[None]:
        """The errors of the module in place of tritonclient's and the connection's."""
        from tritonclient.utils import InferenceServerException

        try:
            yield
        except InferenceServerException as error:
            message = " ".join(str(error.message() or error).split())
            message = message.removeprefix("[request id: <id_unknown>] ")
            if about_images and error.status() in ("400", "413"):
                raise RefusedImage(message) from None
            kind: type[UserError] = Unanswered if error.status() in _PASSING else UserError
            kind = {"404": NotServed, "503": ServerBusy}.get(error.status(), kind)
            raise kind(f"{self.url}: model '{self.model}': {message}") from None
        except (OSError, EOFError) as error:
            raise Unanswered(f"{self.url}: no server answers there ({error})") from None
        except http.client.HTTPException as error:  # a server that stops closes connections with requests under way
            raise Unanswered(f"{self.url}: the connection broke ({error})") from None
