"""A labelled evaluation set: a folder, tar, zip or any fsspec URL with one or more of these tables (or ``TABLE.gz``).

=================  ===================================================================================================
``labels.csv``     ``filename,label,split``; further columns ``label_file`` and ``depth_file`` are read as masks and
                   depth; with ``role`` in place of ``split`` it is read as ``retrieval.csv``
``masks.csv``      ``filename,mask,split``: a PNG of integer class ids, 255 meaning "not scored"
``depth.csv``      ``filename,depth,split`` and where wanted ``scale,offset`` (metres = value * scale + offset): a grey
                   PNG of 16 bits (without scale millimetres) or 8 (with scale only), or an .npy of float metres
``retrieval.csv``  ``filename,label,role``, the role ``db`` or ``query``; beside it where wanted ``relations.csv``,
                   ``query,image,relation``, the relation ``easy``, ``hard`` or ``junk``
``tracking.csv``   ``sequence,frame,filename,mask``: a PNG of object ids; the first frame has one
``boxes.csv``      ``filename,left,top,right,bottom`` in pixels, a row a box
``pairs.csv``      ``source,target,source_x,source_y,target_x,target_y`` in pixels, a row a point, and where wanted
                   ``scale``
=================  ===================================================================================================

Optional ``classes.csv``: columns ``id,name`` and, where wanted, ``ignore`` (1: this id is not scored). Further columns
are left alone. Files lie loose under the folder or inside its ``*.tar`` / ``*.tar.gz`` / ``*.tgz`` files, then named
as the member is. A split is ``train``, ``test``, or any other name that the probes do not use; where no row says
``test``, ``val`` (``validation``, ``valid``) serves as test. Retrieval, tracking, boxes and pairs are all ``test``.
DAVIS sequences are found by their folders, and where there is no table at all so are labels and masks
(:mod:`training.data.evaluation_layouts`).
"""

from __future__ import annotations

import hashlib
from functools import cached_property
from typing import TYPE_CHECKING

from foundry.errors import UserError
from training.data.evaluation_contents import Contents, read_contents
from training.data.evaluation_pixels import check_size, decode_depth, decode_ids
from training.data.evaluation_relations import Box, BoxedImage, ImagePair, RetrievalImage, Sequence_
from training.data.evaluation_rows import DepthImage, LabelledImage, MaskedImage
from training.data.evaluation_source import open_source
from training.data.evaluation_tables import IGNORE, TABLES

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "IGNORE",
    "Box",
    "BoxedImage",
    "DepthImage",
    "EvaluationSet",
    "ImagePair",
    "LabelledImage",
    "MaskedImage",
    "RetrievalImage",
    "Sequence_",
]


class EvaluationSet:
    """Images and what is known of them, checked when opened. Use :meth:`open`."""

    def __init__(self, url: str, contents: Contents) -> None:
        self.url = url
        """Where it was opened."""
        self._contents = contents

    @classmethod
    def open(cls, url: str) -> EvaluationSet:
        """The set at ``url``.

        Raises :class:`UserError` in one plain sentence where there is none, a table lacks a column or a row, a split is
        missing, a listed file does not exist, an image is listed twice, a class is tested that no train image shows, or
        a query, sequence, box or pair could not be scored. What the files hold is checked when they are read.
        """
        return cls(url, read_contents(url, open_source(url, TABLES)))

    @property
    def tasks(self) -> tuple[str, ...]:
        """What there is truth of, among labels, masks, depth, retrieval, tracking, boxes and pairs, in that order."""
        return tuple(task for task, there in self._contents.tasks().items() if there)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes of the classification task; empty without labels."""
        return self._contents.classes

    @property
    def sequences(self) -> tuple[Sequence_, ...]:
        """The videos, by name."""
        return self._contents.sequences

    @property
    def boxes(self) -> tuple[BoxedImage, ...]:
        """The images with boxes, in the order of the table."""
        return self._contents.boxes

    @property
    def pairs(self) -> tuple[ImagePair, ...]:
        """The pairs of images with points that correspond, in the order of the table."""
        return self._contents.pairs

    @property
    def has_labels(self) -> bool:
        """Whether there is a classification task."""
        return bool(self._contents.labels)

    @property
    def has_masks(self) -> bool:
        """Whether there is a segmentation task."""
        return bool(self._contents.masks)

    @property
    def has_depth(self) -> bool:
        """Whether there is a depth task."""
        return bool(self._contents.depth)

    @property
    def has_retrieval(self) -> bool:
        """Whether there are queries and a gallery."""
        return bool(self.queries)

    @property
    def has_tracking(self) -> bool:
        """Whether there are videos with masks."""
        return bool(self.sequences)

    @property
    def has_boxes(self) -> bool:
        """Whether there are boxes of objects."""
        return bool(self.boxes)

    @property
    def has_pairs(self) -> bool:
        """Whether there are pairs of images with points that correspond."""
        return bool(self.pairs)

    @property
    def splits(self) -> list[str]:
        """Names of all splits."""
        return sorted(self._contents.images())

    def images(self, split: str) -> list[str]:
        """Names of the images of ``split``, of every task."""
        return sorted(self._contents.images().get(split, ()))

    def classification(self, split: str) -> list[LabelledImage]:
        """The images of ``split`` in the order of the table; empty for a split that is not there."""
        return list(self._contents.labels.get(split, ()))

    def segmentation(self, split: str) -> list[MaskedImage]:
        """The images with masks of ``split`` in the order of the table; empty for a split that is not there."""
        return list(self._contents.masks.get(split, ()))

    def depth(self, split: str) -> list[DepthImage]:
        """The images with depth of ``split`` in the order of the table; empty for a split that is not there."""
        return list(self._contents.depth.get(split, ()))

    @property
    def queries(self) -> tuple[RetrievalImage, ...]:
        """The M images that are looked for, in the order of the table."""
        return self._contents.retrieval.queries

    @property
    def gallery(self) -> tuple[RetrievalImage, ...]:
        """The N images that are looked through, in the order of the table."""
        return self._contents.retrieval.gallery

    def relations(self) -> np.ndarray:
        """(M, N) int8, what each image of the gallery is to each query: 0 another, 1 an easy positive, 2 a hard one,
        -1 junk, which counts neither way.

        An equal label makes an easy positive; a query's own file in the gallery is junk; a row of ``relations.csv``
        decides over both.
        """
        return self._contents.retrieval.matrix()

    def read(self, name: str) -> bytes:
        """Content of the file called ``name`` in the tables."""
        return self._contents.source.read(name)

    @cached_property
    def mask_classes(self) -> dict[int, str]:
        """Scored class ids of the masks, ascending, with their names. Without ``classes.csv`` (and ADE20K's own list):
        the ids of the train masks, named by number."""
        if not self._contents.masks:
            return {}
        if self._contents.ids.names:
            return self._contents.ids.scored()
        import numpy as np

        ids: set[int] = set()
        for item in self._contents.masks["train"]:
            ids.update(int(id) for id in np.unique(self._decode_ids("mask", item.mask)))
        ids.discard(IGNORE)
        if len(ids) > IGNORE:
            raise UserError(
                f"{self.url}: the train masks hold {len(ids)} class ids, more than {IGNORE}; write classes.csv"
            )
        return {id: str(id) for id in sorted(ids)}

    def read_mask(self, item: MaskedImage, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) uint8 mask of ``item``: index into :attr:`mask_classes` (in ascending order of id), 255 = not scored.

        ``size`` is the (height, width) of the image. Raises :class:`UserError` where the mask has another size, is not
        a one-channel PNG, or holds an id that ``classes.csv`` does not list.
        """
        import numpy as np

        ids = self._decode_ids("mask", item.mask)
        check_size(self.url, "mask", item.mask, item.name, ids.shape, size)
        table = np.full(max(int(ids.max(initial=0)), IGNORE) + 1, -1, np.int64)
        table[[IGNORE, *(id for id in self._contents.ids.ignored if id < len(table))]] = IGNORE
        for index, id in enumerate(self.mask_classes):
            if id < len(table):
                table[id] = index
        mask = table[ids]
        if (mask < 0).any():
            known = self._contents.ids.origin if self._contents.ids.names else "the train masks"
            raise UserError(f"{self.url}: mask {item.mask} holds class id {int(ids[mask < 0][0])}, unknown to {known}")
        return mask.astype(np.uint8)

    def read_depth(self, row: DepthImage, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) float32 metres of ``row``, 0 where not measured.

        Not measured is a value of 0 unless the row's offset is above 0, one that is no finite number, and whatever does
        not give more than 0 metres. ``size`` is the (height, width) of the image. Raises :class:`UserError` where the
        depth has another size, is neither a grey PNG nor an .npy of (H, W) numbers, or has no known unit.
        """
        depth = decode_depth(self.url, row, self.read(row.depth))
        check_size(self.url, "depth", row.depth, row.name, depth.shape, size)
        return depth

    def read_objects(self, name: str, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) uint8 object ids of the mask called ``name`` in a sequence: 0 background, 255 not scored.

        Where the first mask of the sequence holds nothing but 0 and 255 (DAVIS 2016), 255 is object 1 in all its masks.
        ``size`` is the (height, width) of the frame. Raises :class:`UserError` where the mask has another size, is
        not a one-channel PNG, holds ids above 255, or shows no object though it is the first.
        """
        import numpy as np

        first, frame = self._object_masks[name]
        ids = self._decode_ids("object mask", name)
        check_size(self.url, "object mask", name, frame, ids.shape, size)
        if first not in self._binary:
            self._binary[first] = set(np.unique(self._decode_ids("object mask", first))) <= {0, IGNORE}
        if self._binary[first]:
            ids[ids == IGNORE] = 1
        if ids.max(initial=0) > IGNORE:
            raise UserError(f"{self.url}: object mask {name} holds id {ids.max()}; object ids are at most {IGNORE - 1}")
        if name == first and not ((ids > 0) & (ids < IGNORE)).any():
            raise UserError(
                f"{self.url}: object mask {name} shows no object, but tracking of its sequence starts there"
            )
        return ids.astype(np.uint8)

    @cached_property
    def _object_masks(self) -> dict[str, tuple[str, str]]:
        """Mask -> (first mask of its sequence, its frame)."""
        return {
            mask: (sequence.masks[0] or mask, frame)
            for sequence in self.sequences
            for mask, frame in zip(sequence.masks, sequence.frames, strict=True)
            if mask is not None
        }

    @cached_property
    def _binary(self) -> dict[str, bool]:
        """First mask -> whether it holds one object, as 255."""
        return {}

    def pck_scale(self, pair: ImagePair) -> float:
        """Pixels of the target image that PCK's alpha multiplies: the pair's own, else the longer side of the image."""
        if pair.scale is not None:
            return pair.scale
        from foundry.images import ImageError, open_image

        try:
            image = open_image(self.read(pair.target))
        except ImageError as error:
            raise UserError(f"{self.url}: {pair.target}: {error}") from None
        return float(max(image.height, image.width))

    def _decode_ids(self, what: str, name: str) -> np.ndarray:
        return decode_ids(self.url, what, name, self.read(name))

    def digest(self) -> str:
        """sha256 over the tasks and the content of every listed file: equal for equal sets, loose or packed."""
        digest = hashlib.sha256()
        for line in self._contents.lines():
            digest.update(("\0".join(map(str, line)) + "\n").encode())
        for name in sorted(self._contents.files()):
            digest.update(f"{name}\0{hashlib.sha256(self.read(name)).hexdigest()}\n".encode())
        return digest.hexdigest()
