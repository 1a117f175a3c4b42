"""From a Hugging Face folder to ONNX: fp32, any batch size, one resolution, checked against PyTorch."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from foundry.errors import UserError
from foundry.settings import digest_of
from foundry.storage import sha256_of_file, write_atomically
from foundry.vector_math import settle_vector_math

MODEL_FILE = "model.onnx"
DESCRIPTION_FILE = "export.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
SOURCE_FILES = ("config.json", PREPROCESSOR_FILE, "model.safetensors")
OPSET = 20
"""The first with Gelu as one operator; 1.5 times as fast as 18 for a ViT-S on two cores."""
PARITY = 1e-5
"""Largest difference to PyTorch that an export may have, relative to the largest value of the output."""

_PREFIX_TOKENS: dict[str, Callable[[Any], int]] = {
    "dinov3_vit": lambda config: 1 + int(config.num_register_tokens),
    "dinov3_convnext": lambda config: 1,
}
"""Tokens of last_hidden_state before the patch tokens, by model_type (CLS and registers; the pooled token)."""


@dataclass(frozen=True)
class OnnxExport:
    """What ``export.json`` says of an export."""

    architecture: str
    """Hugging Face ``model_type``."""
    resolution: int
    """Height and width of the input, pixels."""
    dimension: int
    """D of the embedding."""
    patches: int
    """N of the patch features, (N, D)."""
    opset: int
    source_digest: str
    """See :func:`source_digest`."""
    digest: str
    """sha256 over the ONNX files and the preprocessing: the same digest answers with the same embeddings."""
    parity: dict[str, float]
    """Largest difference to PyTorch of each output, relative to its largest value."""
    versions: dict[str, str]
    schema: int = 1


def export_onnx(export_folder: Path, destination: Path, opset: int = OPSET) -> OnnxExport:
    """Write ``model.onnx``, ``preprocessor_config.json`` and ``export.json`` into the new folder ``destination``.

    ``export_folder`` holds config.json, model.safetensors and preprocessor_config.json (a DINOv3ViTModel or a
    DINOv3ConvNextModel). The graph takes ``pixels`` float32 (B, 3, S, S), already normalised, and gives ``embedding``
    float32 (B, D) and ``patch_features`` float32 (B, N, D). Equal weights and versions give equal bytes.

    Raises :class:`UserError` for a folder that is not such an export, and where ONNX Runtime and PyTorch differ by
    more than :data:`PARITY`; nothing is left at ``destination`` then.
    """
    config, preprocessor = _check_source(export_folder)
    if destination.exists():
        raise UserError(f"{destination}: exists already; name a new folder for the export")
    destination.parent.mkdir(parents=True, exist_ok=True)
    staged = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        resolution = int(preprocessor["crop_size"]["height"])
        model, shapes = _load(export_folder, config, resolution)
        with _quiet():
            _write_graph(model, resolution, staged / MODEL_FILE, opset)
            parity = _measure_parity(model, staged / MODEL_FILE, resolution)
        too_far = {name: value for name, value in parity.items() if not value <= PARITY}
        if too_far:
            name, value = max(too_far.items(), key=lambda item: item[1])
            raise UserError(
                f"{export_folder}: the ONNX graph gives another {name} than PyTorch (relative difference {value:.1e}, "
                f"allowed {PARITY:.0e}); it was not kept"
            )
        shutil.copyfile(export_folder / PREPROCESSOR_FILE, staged / PREPROCESSOR_FILE)
        export = OnnxExport(
            architecture=config["model_type"],
            resolution=resolution,
            dimension=shapes[1],
            patches=shapes[0],
            opset=opset,
            source_digest=source_digest(export_folder),
            digest=_content_digest(staged),
            parity=parity,
            versions=_versions(),
        )
        write_atomically(staged / DESCRIPTION_FILE, json.dumps(asdict(export), indent=2) + "\n")
        staged.chmod(0o755)
        os.rename(staged, destination)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return export


def cached_export(export_folder: Path, cache: Path, opset: int = OPSET) -> tuple[Path, OnnxExport]:
    """:func:`export_onnx` into a folder of ``cache`` named by the weights and the versions; reused when it is there."""
    _check_source(export_folder)
    key = digest_of([source_digest(export_folder), opset, _versions(), sha256_of_file(Path(__file__))])
    folder = cache / key[:32]
    if (folder / DESCRIPTION_FILE).exists():
        export = read_export(folder)
        if _content_digest(folder) == export.digest:
            return folder, export
        shutil.rmtree(folder)
    try:
        return folder, export_onnx(export_folder, folder, opset)
    except OSError:
        if (folder / DESCRIPTION_FILE).exists():  # another process made the same export meanwhile
            return folder, read_export(folder)
        raise


def read_export(folder: Path) -> OnnxExport:
    """The description of the ONNX export in ``folder``. Raises :class:`UserError` where there is none."""
    try:
        values = json.loads((folder / DESCRIPTION_FILE).read_text(encoding="utf-8"))
        if values.get("schema") != 1:
            raise UserError(f"{folder}: an ONNX export of schema {values.get('schema')}; this version reads schema 1")
        return OnnxExport(**values)
    except FileNotFoundError:
        raise UserError(f"{folder}: no {DESCRIPTION_FILE}; not an ONNX export (make one with serving export)") from None
    except (ValueError, TypeError) as error:
        raise UserError(f"{folder}/{DESCRIPTION_FILE}: cannot be read ({error}); make the export again") from None


def source_digest(export_folder: Path) -> str:
    """sha256 over the weights, the configuration and the preprocessing of a Hugging Face folder."""
    return digest_of([[name, sha256_of_file(export_folder / name)] for name in SOURCE_FILES])


def _check_source(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a Hugging Face export (config.json and model.safetensors)")
    for name in SOURCE_FILES:
        if not (folder / name).is_file():
            raise UserError(f"{folder}: {name} is missing; name a Hugging Face export (a folder under <run>/export)")
    documents = []
    for name in SOURCE_FILES[:2]:
        try:
            document = json.loads((folder / name).read_text(encoding="utf-8"))
        except ValueError as error:
            raise UserError(f"{folder}/{name}: not valid JSON ({error})") from None
        if not isinstance(document, dict):
            raise UserError(f"{folder}/{name}: expected a JSON object")
        documents.append(document)
    config, preprocessor = documents
    kind = config.get("model_type")
    if kind not in _PREFIX_TOKENS:
        supported = ", ".join(sorted(_PREFIX_TOKENS))
        raise UserError(f"{folder}: cannot serve a model of type '{kind}'; supported: {supported}")
    if config.get("num_channels", 3) != 3:
        raise UserError(f"{folder}: the model takes {config['num_channels']} channels; served models take RGB images")
    crop = preprocessor.get("crop_size")
    if not isinstance(crop, dict) or not crop.get("height") or crop.get("height") != crop.get("width"):
        raise UserError(f"{folder}/{PREPROCESSOR_FILE}: crop_size is {crop}; a square crop is needed")
    return config, preprocessor


def _load(folder: Path, config: dict[str, Any], resolution: int) -> tuple[Any, tuple[int, int]]:
    """The wrapped model in eval mode, fp32, and its patch_features' (N, D)."""
    import torch
    from transformers import AutoModel

    settle_vector_math(torch)

    class Served(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model, self.prefix = model, _PREFIX_TOKENS[config["model_type"]](model.config)

        def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            output = self.model(pixel_values=pixels)
            return output.pooler_output, output.last_hidden_state[:, self.prefix :]

    with _quiet():
        try:
            model, report = AutoModel.from_pretrained(
                str(folder),
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
        except Exception as error:  # transformers and safetensors raise whatever they like about a damaged folder
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{folder}: cannot be loaded by transformers ({reason})") from error
    absent = sorted([*report["missing_keys"], *(key for key, *_ in report["mismatched_keys"])])
    if absent:
        more = f" and {len(absent) - 1} more" if len(absent) > 1 else ""
        raise UserError(f"{folder}: model.safetensors does not fit config.json: no weights for {absent[0]}{more}")
    served = Served(model.eval())
    with torch.inference_mode():
        _, patches = served(torch.zeros(1, 3, resolution, resolution))
    return served, (patches.shape[1], patches.shape[2])


def _write_graph(model: Any, resolution: int, path: Path, opset: int) -> None:
    import torch

    batch = torch.export.Dim("batch", min=1, max=65536)
    program = torch.onnx.export(
        model,
        (torch.zeros(2, 3, resolution, resolution),),
        dynamo=True,
        opset_version=opset,
        input_names=["pixels"],
        output_names=["embedding", "patch_features"],
        dynamic_shapes=({0: batch},),
        verbose=False,
    )
    assert program is not None
    _strip_metadata(program.model)
    program.save(str(path))


def _strip_metadata(model: Any) -> None:
    """Drop stack traces and names of this machine's files: a third of a small graph, and different elsewhere."""
    model.metadata_props.clear()
    for graph in (model.graph, *model.functions.values()):
        graph.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()


def _measure_parity(model: Any, path: Path, resolution: int) -> dict[str, float]:
    """Largest difference between PyTorch and ONNX Runtime over batches of 1 and 3 normal-distributed inputs."""
    import numpy as np
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = ["embedding", "patch_features"]
    worst = dict.fromkeys(names, 0.0)
    random = np.random.default_rng(0)
    for count in (1, 3):
        pixels = random.standard_normal((count, 3, resolution, resolution), dtype=np.float32)
        with torch.inference_mode():
            expected = [output.numpy() for output in model(torch.from_numpy(pixels))]
        for name, reference, output in zip(names, expected, session.run(names, {"pixels": pixels}), strict=True):
            scale = max(float(np.abs(reference).max()), 1e-12)
            difference = float(np.abs(reference - output).max()) / scale
            worst[name] = max(worst[name], difference) if np.isfinite(difference) else float("inf")
    return worst


def _content_digest(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir() if path.name not in (DESCRIPTION_FILE,))
    return digest_of([[name, sha256_of_file(folder / name)] for name in names])


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("torch", "transformers", "onnx", "onnxscript")}


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's and transformers' remarks (missing torchvision, progress bars) off the terminal."""
    from transformers.utils import logging as transformers_logging

    logger = logging.getLogger("torch.onnx")
    level, bars = logger.level, transformers_logging.is_progress_bar_enabled()
    verbosity = transformers_logging.get_verbosity()
    logger.setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
