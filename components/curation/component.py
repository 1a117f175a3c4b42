"""The KFP faces of curation: the step, and the embedding of a share of the pool, for pods that work side by side."""

from kfp.dsl import HTML, Dataset, Metrics, Output, component

from components.common.image import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def embed(config: dict, pool: str, backbone: str, part: int, parts: int) -> int:
    """Embed one share of the pool with the backbone; curation finds the result on the shared volume.

    Args:
        config: Section 'curation' of params.yaml; what is left out has its default.
        pool: The pool, as for curation.
        backbone: The network, as for curation; without one there is nothing to do.
        part: Which share, from 0.
        parts: Number of shares.

    Returns:
        Files of embeddings that were made.
    """
    from components.common.kfp_face import plain_failure
    from components.curation.embed import embed_share_of_line

    with plain_failure("embed"):
        return embed_share_of_line(config, pool, backbone, part, parts)


@component(base_image=IMAGE, install_kfp_package=False)
def curate(
    config: dict,
    pool: str,
    evaluation: str,
    backbone: str,
    embeddings: str,
    seeds: str,
    raw: str,
    previous: str,
    dataset: Output[Dataset],
    page: Output[HTML],
    metrics: Output[Metrics],
    embedded: list = [],  # noqa: B006  (kfp copies it into the component's description)
) -> None:
    """Turn a raw pool of images into a deduplicated, balanced, versioned dataset of shards.

    Args:
        config: Section 'curation' of params.yaml; what is left out has its default.
        pool: Folder, archive or fsspec URL of unlabelled images; 'sample:' is the embedded sample pool.
        evaluation: Images that will measure the models (URL), of which no copy is kept; 'none', or 'auto' for the
            sample's own.
        backbone: Network whose embeddings tell concepts apart; empty for none.
        embeddings: Folder of embeddings in place of a backbone; empty for none.
        seeds: Images whose like are retrieved from the pool (URL, or NAME=URL;NAME=URL); empty for none.
        raw: Datasets that are taken as they are (URL, or NAME=URL;NAME=URL); empty for none.
        previous: Curated dataset that is added to (URL); 'none' to make a new one.
        dataset: The curated dataset.
        page: What became of every file, as the Kubeflow UI shows it.
        metrics: Counts of samples and of rejected files by reason.
        embedded: What the pods that embedded the pool say; only waited for.
    """
    from components.common.kfp_face import run_step

    inputs = {"pool": pool, "evaluation": evaluation, "backbone": backbone, "embeddings": embeddings}
    inputs |= {"seeds": seeds, "raw": raw, "previous": previous}
    run_step("curation", config, inputs, dataset, metrics, page)
