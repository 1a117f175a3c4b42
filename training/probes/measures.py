"""The measures of all protocols: how each is called, and which way is better."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Measure:
    """How one measure is called in the table and in sentences, and how it is read."""

    title: str
    sentence: str
    how: str
    """The protocol in a sentence or two, for the report."""
    share: bool = True
    """A fraction, shown in per cent."""
    labelled: bool = True
    smaller_is_better: bool = False


class _Measures(dict[str, Measure]):
    """By name; ``SET/NAME`` is the measure NAME on a set that is not the first of its kind."""

    def __missing__(self, name: str) -> Measure:
        owner, slash, plain = name.rpartition("/")
        if not slash or plain not in self:
            raise KeyError(name)
        measure = self[plain]
        return replace(measure, title=f"{measure.title} ({owner})", sentence=f"{measure.sentence} on {owner}")

    def __contains__(self, name: object) -> bool:
        return dict.__contains__(self, str(name).rpartition("/")[2])


MEASURES: dict[str, Measure] = _Measures(
    {
        "knn_top1": Measure(
            "k-NN top-1",
            "k-NN top-1",
            "Weighted k-NN on L2-normalised embeddings, votes exp(cosine / 0.07); train images are the bank, test "
            "images the queries (Caron et al. 2021, 4.1).",
        ),
        "linear_top1": Measure(
            "Linear top-1",
            "linear probe top-1",
            "A linear classifier on the embeddings of the last layers, with or without the mean patch; learning rate "
            "and features chosen on a held-out fifth of the train images, fitted again on all of them; the test images "
            "are used once (Oquab et al. 2023, B.3).",
        ),
        "logistic_top1": Measure(
            "Logistic top-1",
            "logistic regression top-1",
            "L2-regularised multinomial logistic regression on the embedding; its strength is chosen on a held-out "
            "tenth of the train images (Oquab et al. 2023, B.3).",
        ),
        "few_shot_top1": Measure(
            "Few-shot top-1",
            "few-shot top-1",
            "Logistic regression from a few images a class (the most of the setting few_shot), mean over draws.",
        ),
        "miou": Measure(
            "Segm. mIoU",
            "segmentation mIoU",
            "BatchNorm and a 1x1 convolution on frozen patch features, bilinear upsampling; mean IoU over the classes "
            "of the test masks. Images are shown whole, as a square (Siméoni et al. 2025, 6.1.2).",
        ),
        "depth_rmse": Measure(
            "Depth RMSE",
            "depth error",
            "A linear head on frozen patch features reads 256 bins of depth; root mean squared error in metres, mean "
            "over the test images (Oquab et al. 2023, 7.4).",
            share=False,
            smaller_is_better=True,
        ),
        "depth_delta1": Measure(
            "Depth delta1",
            "share of pixels within 1.25 times the true depth",
            "Of the same head: share of the pixels whose depth is within a factor of 1.25, mean over the test images.",
        ),
        "retrieval_map": Measure(
            "Retrieval mAP",
            "retrieval mAP",
            "Mean average precision of the gallery ranked by cosine, one query after another; where positives are "
            "easy and hard, both count (Radenović et al. 2018, medium).",
        ),
        "recall_at_1": Measure(
            "Recall@1", "recall at 1", "Share of the queries whose nearest gallery image shows the same."
        ),
        "tracking_jf": Measure(
            "Tracking J&F",
            "tracking J&F",
            "The first frame's mask is propagated through the video by the similarity of patches, nothing is trained; "
            "mean of region (J) and boundary (F) agreement over objects (Caron et al. 2021, 4.2.2).",
        ),
        "corloc": Measure(
            "Discovery CorLoc",
            "object discovery",
            "Share of images in which the box that TokenCut finds overlaps a true one by half (Wang et al. 2022).",
        ),
        "pck": Measure(
            "Corresp. PCK",
            "correspondence",
            "Share of key points that the most similar patch of the other image places within a tenth of the object's "
            "(or image's) size.",
        ),
        "robust_top1": Measure(
            "Corrupted top-1",
            "k-NN top-1 under corruption",
            "k-NN of corrupted test images, the bank being clean: mean over 15 corruptions and the chosen severities "
            "(Hendrycks and Dietterich 2019).",
        ),
        "copy_retrieval": Measure(
            "Copy retrieval",
            "retrieval of augmented copies",
            "Share of images whose second view (another crop, mirrored, other colours, blurred) is the nearest of all "
            "second views.",
            labelled=False,
        ),
        "feature_rank": Measure(
            "Feature rank",
            "feature rank",
            "exp of the entropy of the normalised singular values of the embeddings (RankMe); 1 is collapse.",
            share=False,
            labelled=False,
        ),
        "patch_coherence": Measure(
            "Patch coherence",
            "patch coherence",
            "Probability that a patch is more similar to the patch at its own place in another view than to another "
            "patch there; 50 % is chance, position alone gives a little more.",
            labelled=False,
        ),
        "warp_pck": Measure(
            "Warped PCK",
            "correspondence under warps",
            "As correspondence, on images of the dataset and their known warps: no labels are needed.",
            labelled=False,
        ),
        "planted_corloc": Measure(
            "Planted CorLoc",
            "discovery of planted objects",
            "As object discovery, on images of the dataset into which a piece of another one was planted.",
            labelled=False,
        ),
    }
)
"""Every measure, in the order of the table's columns."""
