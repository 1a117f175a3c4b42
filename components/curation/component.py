"""The KFP face of curation."""

from kfp.dsl import Dataset, Metrics, Output, component

from components.common.image import IMAGE


@component(base_image=IMAGE, install_kfp_package=False)
def curate(config: dict, pool: str, evaluation: str, dataset: Output[Dataset], metrics: Output[Metrics]) -> None:
    """Turn a raw pool of images into a deduplicated, balanced, versioned dataset of shards.

    Args:
        config: Section 'curation' of params.yaml; what is left out has its default.
        pool: Folder, archive or fsspec URL of unlabelled images; 'sample:' is the embedded sample pool.
        evaluation: Images that will measure the models (URL), of which no copy is kept; 'none', or 'auto' for the
            sample's own.
        dataset: The curated dataset.
        metrics: Counts of samples and of rejected files by reason.
    """
    from components.common.kfp_face import run_step

    run_step("curation", config, {"pool": pool, "evaluation": evaluation}, dataset, metrics)
