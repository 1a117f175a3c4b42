"""What balance and retrieval do to concepts, on real images whose labels curation never sees.

    FOUNDRY_DATA=... python tests/benchmarks/concepts.py --folder DIR [--backbone MODEL] [--bootstrap] [--small]

Balance: the entropy (nats) of labels in a balanced sample beside the mean of ten uniform samples of the same size,
half of the pool. Pools: caltech20 and cifar10, each cut to a long tail (class c of C keeps 20^(-c / (C - 1)) of its
images, classes in the order of their names), and webpool with the concepts of its truth.csv and with its finest
clusters as concepts. Retrieval: seeds are the 600 training images of caltech20; the pool is its 400 test images and
webpool, of which copies (exact or made ones, and copies of caltech20) are left out, as deduplication leaves them out.
``precision_at_10``: mean share of the ten nearest pool images that have the seed's label. ``by_sample``,
``by_cluster``: share of what is retrieved that has the label of its seed (by sample), or any of the 20 labels;
``base_rate``: that share of the whole pool. Each by the descriptor made by hand, by raw pixels (16 x 16, retrieval
only), by ``--backbone`` and, with ``--bootstrap``, by a `laptop` network trained on the pool of the retrieval.
``--small`` takes a tenth of everything. The last line is one JSON object.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPOSITORY))

from components.curation.config import CurationConfig, RetrievalConfig  # noqa: E402
from components.curation.sources import Source, read_source  # noqa: E402
from components.curation.space import BackboneSpace, DescriptorSpace, Space  # noqa: E402

CONFIG = CurationConfig()
TAIL, UNIFORM_SAMPLES = 20, 10
Vectors = Callable[[Source, np.ndarray], np.ndarray]


def entropy(labels: Sequence[str]) -> float:
    """Of the shares of the labels, in nats."""
    shares = np.array(list(Counter(labels).values())) / len(labels)
    return float(-(shares * np.log(shares)).sum())


def long_tail(labels: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The rows that stay where each further class keeps less."""
    classes = sorted(set(labels[rows]))
    kept = []
    for number, name in enumerate(classes):
        own = rows[labels[rows] == name]
        kept.append(own[: max(1, round(len(own) * TAIL ** (-number / max(len(classes) - 1, 1))))])
    return np.sort(np.concatenate(kept))


def entropies(vectors: np.ndarray, labels: np.ndarray | None, work: Path) -> dict[str, float]:
    """Entropy of labels (None: of the finest clusters) in a balanced half and in uniform halves."""
    from components.curation.full import balance

    half = len(vectors) // 2
    config = CONFIG.model_copy(update={"balance": CONFIG.balance.model_copy(update={"size": half})})
    times, clusters, _ = balance(vectors, config, work)
    names = np.array(clusters) if labels is None else labels
    uniform = [
        entropy(names[np.random.default_rng(seed).choice(len(names), half, replace=False)])
        for seed in range(UNIFORM_SAMPLES)
    ]
    return {
        "images": len(vectors),
        "concepts": len(set(names)),
        "uniform": round(float(np.mean(uniform)), 4),
        "balanced": round(entropy(names[times > 0]), 4),
        "largest": round(float(np.log(len(set(names)))), 4),
    }


def decoded(source: Source) -> np.ndarray:
    return np.flatnonzero(np.array([not reason for reason in source.scan.reason]))


def pixels(source: Source, rows: np.ndarray) -> np.ndarray:
    """Raw pixels at 16 x 16, of unit length."""
    from foundry.images import decode_image
    from training.probes.baselines import raw_pixels

    wanted = set(rows.tolist())
    found = [raw_pixels(decode_image(file.data)) for row, file in enumerate(source.pool.files()) if row in wanted]
    matrix = np.stack(found)
    return (matrix / np.maximum(np.linalg.norm(matrix, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def retrieval(
    seeds: np.ndarray, seed_labels: np.ndarray, pool: np.ndarray, pool_labels: np.ndarray
) -> dict[str, float]:
    """Precisions of what ``seeds`` find in ``pool``."""
    from components.curation.retrieval import nearest, retrieve

    known = set(seed_labels)
    of_any = np.array([label in known for label in pool_labels])
    places, _ = nearest(seeds, pool, 10)
    by_sample = retrieve(seeds, pool, RetrievalConfig(neighbours=1), 0)
    by_cluster = retrieve(seeds, pool, RetrievalConfig(mode="cluster", min_hits=4), 0)
    return {
        "precision_at_10": round(float((pool_labels[places] == seed_labels[:, None]).mean()), 4),
        "by_sample_same_label": round(float((pool_labels[by_sample.images] == seed_labels[by_sample.seeds]).mean()), 4),
        "by_sample_any_label": round(float(of_any[by_sample.images].mean()), 4),
        "by_sample_images": len(by_sample.images),
        "by_cluster_any_label": round(float(of_any[by_cluster.images].mean()), 4),
        "by_cluster_images": len(by_cluster.images),
        "base_rate": round(float(of_any.mean()), 4),
    }


def class_of(source: Source) -> np.ndarray:
    """The folder that each file of a labelled set lies in."""
    return np.array([path.split("/")[-2] if "/" in path else "" for path in source.scan.path])


def bootstrapped(folder: Path, sources: Sequence[tuple[Source, np.ndarray]]) -> Path:
    """A network trained on these images (reused if there)."""
    from components.curation.bootstrap import train_backbone
    from components.curation.shards import Sample, key_of

    samples, files, first = {}, [], 0
    for source, rows in sources:
        scan = source.scan
        for row in rows.tolist():
            digest = scan.sha256[row]
            size, width, height = int(scan.size[row]), int(scan.width[row]), int(scan.height[row])
            place, path = first + row, scan.path[row]
            samples.setdefault(
                digest, Sample(place, key_of(digest), scan.extension[row], digest, size, width, height, path)
            )
        files.append(source.pool)
        first += len(scan)
    ordered = [samples[digest] for digest in sorted(samples)]
    stream = (file for pool in files for file in pool.files())
    settings = CONFIG.embedding.bootstrap
    return train_backbone(settings, ordered, stream, "benchmark", 1 << 28, 0, folder / "work", folder)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--backbone")
    parser.add_argument("--bootstrap", action="store_true")
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args(arguments)
    data = Path(os.environ["FOUNDRY_DATA"])
    keep = slice(None, None, 10 if options.small else 1)
    folder = options.folder
    caltech = read_source(str(data / "caltech20"), CONFIG, folder, "raw", "caltech20")
    web = read_source(str(data / "webpool" / "webpool.tar.gz"), CONFIG, folder, "raw", "webpool")
    with (data / "webpool" / "truth.csv").open() as file:
        truth = {row["filename"]: row for row in csv.DictReader(file)}

    classes, shown = class_of(caltech), decoded(caltech)
    split = np.array([path.split("/")[-3] if path.count("/") > 1 else "" for path in caltech.scan.path])
    queries, test = shown[split[shown] == "train"][keep], shown[split[shown] == "test"]
    facts = [truth.get(path, {}) for path in web.scan.path]
    first_of = {digest: row for row, digest in reversed(list(enumerate(web.scan.sha256)))}
    original = [
        row
        for row in decoded(web).tolist()
        if first_of[web.scan.sha256[row]] == row and not facts[row]["near_dup_of"] and not facts[row]["eval_leak_of"]
    ]
    web_rows = np.array(original)[keep]
    web_labels = np.array([facts[row]["label"] for row in web_rows])
    concepts = np.array([facts[row]["concept"] for row in web_rows])

    with gzip.open(data / "cifar10" / "labels.csv.gz", "rt") as file:
        named = {row["filename"]: row["label"] for row in csv.DictReader(file)}
    cifar = read_source(str(data / "cifar10" / "cifar10_test.tar.gz"), CONFIG, folder, "raw", "cifar10")
    cifar_labels = np.array([named.get(path, "") for path in cifar.scan.path])
    cifar_rows = long_tail(cifar_labels, decoded(cifar)[keep])
    caltech_rows = long_tail(classes, shown[keep])

    def of_space(make: Callable[[], Space]) -> dict[str, object]:
        one = make()
        pool = np.concatenate([one.vectors(web, web_rows), one.vectors(caltech, test)])
        labels = np.concatenate([web_labels, classes[test]])
        found = retrieval(one.vectors(caltech, queries), classes[queries], pool, labels)
        web_vectors = make().vectors(web, web_rows)
        return {
            "retrieval": found,
            "entropy": {
                "caltech20, labels": entropies(make().vectors(caltech, caltech_rows), classes[caltech_rows], folder),
                "cifar10, labels": entropies(make().vectors(cifar, cifar_rows), cifar_labels[cifar_rows], folder),
                "webpool, concepts": entropies(web_vectors, concepts, folder),
                "webpool, clusters": entropies(web_vectors, None, folder),
            },
        }

    result: dict[str, object] = {"benchmark": "concepts", "small": options.small, "seeds": len(queries)}
    pool = np.concatenate([pixels(web, web_rows), pixels(caltech, test)])
    labels = np.concatenate([web_labels, classes[test]])
    result["raw pixels"] = {"retrieval": retrieval(pixels(caltech, queries), classes[queries], pool, labels)}
    result["descriptor"] = of_space(lambda: DescriptorSpace(CONFIG.clusters.components))
    networks = {}
    if options.backbone:
        from components.common.model_inputs import network_folder

        networks["backbone"] = network_folder(options.backbone)
    if options.bootstrap:
        networks["bootstrap"] = bootstrapped(folder, [(web, web_rows), (caltech, test)])
    for name, network in networks.items():
        result[name] = of_space(lambda network=network: BackboneSpace(CONFIG, network, "backbone", folder / "embed"))
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
