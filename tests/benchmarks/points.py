"""Points for benchmarks of clustering and searching, written as .npy so that two environments read the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np

BLOCK = 50_000


def write_points(path: Path, count: int, dimensions: int, components: int, spread: float, seed: int = 0) -> Path:
    """``count`` float32 points of unit length: a mixture of ``components`` Gaussians with centres of random direction,
    whose noise has ``spread`` times the length of a centre; without components, uniform on the sphere.

    Spread 0.5: two points of a component have a cosine of about 0.8; spread 1: of about 0.5.
    """
    generator = np.random.default_rng(seed)
    centres = generator.standard_normal((components, dimensions), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    points = np.lib.format.open_memmap(path, "w+", np.float32, (count, dimensions))
    for start in range(0, count, BLOCK):
        rows = min(BLOCK, count - start)
        block = generator.standard_normal((rows, dimensions), dtype=np.float32)
        if components:
            block *= np.float32(spread / dimensions**0.5)
            block += centres[generator.integers(components, size=rows)]
        points[start : start + rows] = block / np.linalg.norm(block, axis=1, keepdims=True)
    points.flush()
    return path
