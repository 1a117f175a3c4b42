"""A labelled evaluation set: a folder, tar, zip or any fsspec URL with ``labels.csv`` and/or ``masks.csv``.

``labels.csv[.gz]``: columns ``filename,label,split``. ``masks.csv[.gz]``: columns ``filename,mask,split``, the mask a
PNG of integer class ids, 255 meaning "not scored". A ``labels.csv`` with a ``label_file`` column is read as masks.
Optional ``classes.csv``: columns ``id,name`` and, where wanted, ``ignore`` (1: this id is not scored). Further columns
are left alone. Files lie loose under the folder or inside its ``*.tar`` / ``*.tar.gz`` / ``*.tgz`` files, then named
as the member is. A split is ``train``, ``test``, or any other name that the probes do not use (such as ``val``).
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import posixpath
import shutil
import tarfile
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from foundry.errors import UserError
from foundry.storage import filesystem

if TYPE_CHECKING:
    import numpy as np

IGNORE = 255
"""Class index of pixels that no score counts."""

_TARS = (".tar", ".tar.gz", ".tgz")
_LABELS, _MASKS, _CLASSES = "labels.csv", "masks.csv", "classes.csv"


@dataclass(frozen=True)
class LabelledImage:
    """One row of the classification task: ``label`` indexes :attr:`EvaluationSet.classes`."""

    name: str
    label: int


@dataclass(frozen=True)
class MaskedImage:
    """One row of the segmentation task: image name and name of its mask file."""

    name: str
    mask: str


class _Source(Protocol):
    """Where files are read from."""

    def __contains__(self, name: str) -> bool: ...

    def read(self, name: str) -> bytes: ...


class _Tar:
    """A tar file with an index of its members. A gzipped one is unpacked to a temporary file, once."""

    def __init__(self, opened: BinaryIO, label: str) -> None:
        try:
            magic = opened.read(2)
            opened.seek(0)
            if magic == b"\x1f\x8b":
                plain = tempfile.TemporaryFile()
                with gzip.GzipFile(fileobj=opened) as stream:
                    shutil.copyfileobj(stream, plain, 1 << 20)
                plain.seek(0)
                opened = plain
            self._file = opened
            with tarfile.open(fileobj=opened, mode="r:") as archive:
                self._members = {
                    posixpath.normpath(member.name): (member.offset_data, member.size)
                    for member in archive
                    if member.isreg()
                }
        except (tarfile.TarError, EOFError, gzip.BadGzipFile, OSError) as error:
            raise UserError(f"{label}: not a readable tar file ({error})") from None
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._members

    def names(self) -> Iterable[str]:
        return self._members

    def read(self, name: str) -> bytes:
        offset, size = self._members[name]
        with self._lock:
            self._file.seek(offset)
            return self._file.read(size)


class _Zip:
    def __init__(self, opened: BinaryIO, label: str) -> None:
        try:
            self._archive = zipfile.ZipFile(opened)
        except zipfile.BadZipFile as error:
            raise UserError(f"{label}: not a readable zip file ({error})") from None
        self._names = {
            posixpath.normpath(info.filename): info.filename for info in self._archive.infolist() if not info.is_dir()
        }
        self._lock = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._names

    def names(self) -> Iterable[str]:
        return self._names

    def read(self, name: str) -> bytes:
        with self._lock:
            return self._archive.read(self._names[name])


class _Folder:
    """Loose files of a folder and, behind them, the members of its tar files (opened when first needed)."""

    def __init__(self, fs: Any, root: str) -> None:
        self._fs = fs
        self._root = root.rstrip("/")
        found = fs.find(self._root)
        start = len(self._root) + 1
        self._files = {path[start:].replace("\\", "/"): path for path in found}
        self._tars: list[_Tar] | None = None

    def __contains__(self, name: str) -> bool:
        return name in self._files or any(name in tar for tar in self._archives())

    def names(self) -> Iterable[str]:
        return self._files

    def read(self, name: str) -> bytes:
        if name in self._files:
            return self._fs.cat_file(self._files[name])
        return next(tar for tar in self._archives() if name in tar).read(name)

    def _archives(self) -> list[_Tar]:
        if self._tars is None:
            names = sorted(name for name in self._files if name.lower().endswith(_TARS))
            self._tars = [_Tar(self._fs.open(self._files[name], "rb"), self._files[name]) for name in names]
        return self._tars


class _Below:
    """The part of an archive below one of its folders."""

    def __init__(self, source: _Tar | _Zip, prefix: str) -> None:
        self._source, self._prefix = source, prefix

    def __contains__(self, name: str) -> bool:
        return self._prefix + name in self._source

    def read(self, name: str) -> bytes:
        return self._source.read(self._prefix + name)


def _open_source(url: str) -> _Source:
    fs, root = filesystem(url)
    if not fs.exists(root):
        raise UserError(f"{url}: no such evaluation set; give a folder, tar or zip with {_LABELS} or {_MASKS}")
    if fs.isdir(root):
        return _Folder(fs, root)
    archive: _Tar | _Zip
    if root.lower().endswith(".zip"):
        archive = _Zip(fs.open(root, "rb"), url)
    elif root.lower().endswith(_TARS):
        archive = _Tar(fs.open(root, "rb"), url)
    else:
        raise UserError(f"{url}: an evaluation set is a folder, .tar, .tar.gz or .zip, this is another file")
    tables = [name for name in archive.names() if posixpath.basename(name).removesuffix(".gz") in (_LABELS, _MASKS)]
    if not tables:
        return archive
    prefix = posixpath.dirname(min(tables, key=lambda name: (name.count("/"), name)))
    return _Below(archive, f"{prefix}/") if prefix else archive


@dataclass(frozen=True)
class _Table:
    name: str
    columns: tuple[str, ...]
    rows: tuple[dict[str, str], ...]


def _read_table(source: _Source, url: str, file: str) -> _Table | None:
    for name in (file, f"{file}.gz"):
        if name in source:
            break
    else:
        return None
    data = source.read(name)
    try:
        text = (gzip.decompress(data) if name.endswith(".gz") else data).decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text), skipinitialspace=True, strict=True)
        rows = tuple({key: (value or "").strip() for key, value in row.items() if key is not None} for row in reader)
    except (UnicodeDecodeError, csv.Error, EOFError, OSError) as error:
        raise UserError(f"{url}: {name} is not a readable CSV file ({error})") from None
    return _Table(name, tuple(reader.fieldnames or ()), rows)


def _require(url: str, table: _Table, columns: Sequence[str]) -> None:
    for column in columns:
        if column not in table.columns:
            hint = "; say train or test for each image" if column == "split" else ""
            raise UserError(
                f"{url}: {table.name} has no column '{column}' (it has {', '.join(table.columns) or 'none'}){hint}"
            )
    if not table.rows:
        raise UserError(f"{url}: {table.name} has no rows")


def _clean(url: str, table: str, name: str) -> str:
    clean = posixpath.normpath(name.replace("\\", "/"))
    if not name or clean.startswith(("/", "../")) or clean == "..":
        raise UserError(f"{url}: {table} names '{name}', which does not lie inside the set")
    return clean


class EvaluationSet:
    """Labelled images and/or masks, checked when opened. Use :meth:`open`."""

    def __init__(self, url: str, source: _Source) -> None:
        self.url = url
        """Where it was opened."""
        self._source = source
        labels = _read_table(source, url, _LABELS)
        masks = _read_table(source, url, _MASKS)
        mask_column = "mask"
        if labels is not None and masks is None and "label_file" in labels.columns:
            masks, mask_column = labels, "label_file"
            if "label" not in labels.columns:
                labels = None
        if labels is None and masks is None:
            raise UserError(f"{url}: holds neither {_LABELS} nor {_MASKS}; without labels leave the set out")
        self._named_ids, self._ignored_ids = self._read_classes()
        self._labels: dict[str, list[LabelledImage]] = {}
        self._masks: dict[str, list[MaskedImage]] = {}
        self.classes: tuple[str, ...] = ()
        """Names of the classes of the classification task; empty without labels."""
        if labels is not None:
            _require(url, labels, ("filename", "label", "split"))
            self._take_labels(labels)
        if masks is not None:
            _require(url, masks, ("filename", mask_column, "split"))
            self._take_masks(masks, mask_column)
        self._check_files_exist()

    @classmethod
    def open(cls, url: str) -> EvaluationSet:
        """The set at ``url``.

        Raises :class:`UserError` in one plain sentence where there is none, a table lacks a column or a row, a split is
        missing, a listed file does not exist, an image is listed twice or a class is tested that no train image shows.
        """
        return cls(url, _open_source(url))

    @property
    def has_labels(self) -> bool:
        """Whether there is a classification task."""
        return bool(self._labels)

    @property
    def has_masks(self) -> bool:
        """Whether there is a segmentation task."""
        return bool(self._masks)

    @property
    def splits(self) -> list[str]:
        """Names of all splits."""
        return sorted({*self._labels, *self._masks})

    def images(self, split: str) -> list[str]:
        """Names of the images of ``split``, of either task."""
        labelled, masked = self.classification(split), self.segmentation(split)
        return sorted({item.name for item in labelled} | {item.name for item in masked})

    def classification(self, split: str) -> list[LabelledImage]:
        """The images of ``split`` in the order of the table; empty for a split that is not there."""
        return list(self._labels.get(split, ()))

    def segmentation(self, split: str) -> list[MaskedImage]:
        """The images with masks of ``split`` in the order of the table; empty for a split that is not there."""
        return list(self._masks.get(split, ()))

    def read(self, name: str) -> bytes:
        """Content of the file called ``name`` in the tables."""
        return self._source.read(name)

    @cached_property
    def mask_classes(self) -> dict[int, str]:
        """Scored class ids of the masks, ascending, with their names. Without ``classes.csv``: the ids of the train
        masks, named by number."""
        if not self._masks:
            return {}
        if self._named_ids:
            return {id: name for id, name in sorted(self._named_ids.items()) if id not in self._ignored_ids}
        import numpy as np

        ids: set[int] = set()
        for item in self._masks["train"]:
            ids.update(int(id) for id in np.unique(self._decode_mask(item)))
        return {id: str(id) for id in sorted(ids - {IGNORE})}

    def read_mask(self, item: MaskedImage, size: tuple[int, int] | None = None) -> np.ndarray:
        """(H, W) uint8 mask of ``item``: index into :attr:`mask_classes` (in ascending order of id), 255 = not scored.

        ``size`` is the (height, width) of the image. Raises :class:`UserError` where the mask has another size, is not
        a one-channel PNG, or holds an id that ``classes.csv`` does not list.
        """
        import numpy as np

        ids = self._decode_mask(item)
        if size is not None and ids.shape != tuple(size):
            raise UserError(
                f"{self.url}: mask {item.mask} is {ids.shape[1]}x{ids.shape[0]}, its image {item.name} "
                f"{size[1]}x{size[0]}; they must be equal"
            )
        table = np.full(max(int(ids.max(initial=0)), IGNORE) + 1, -1, np.int64)
        table[[IGNORE, *self._ignored_ids]] = IGNORE
        for index, id in enumerate(self.mask_classes):
            if id < len(table):
                table[id] = index
        mask = table[ids]
        if (mask < 0).any():
            known = "classes.csv" if self._named_ids else "the train masks"
            raise UserError(f"{self.url}: mask {item.mask} holds class id {int(ids[mask < 0][0])}, unknown to {known}")
        return mask.astype(np.uint8)

    def _decode_mask(self, item: MaskedImage) -> np.ndarray:
        import numpy as np
        from PIL import Image

        try:
            with Image.open(io.BytesIO(self.read(item.mask)), formats=("PNG",)) as image:
                ids = np.asarray(image)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{self.url}: mask {item.mask} is not a readable PNG ({error})") from None
        if ids.ndim != 2:
            raise UserError(f"{self.url}: mask {item.mask} has {ids.shape[2]} channels, not one channel of class ids")
        return ids.astype(np.int64)

    def digest(self) -> str:
        """sha256 over the tasks and the content of every listed file: equal for equal sets, loose or packed."""
        digest = hashlib.sha256()
        for id, name in sorted(self._named_ids.items()):
            digest.update(f"class\0{id}\0{name}\0{id in self._ignored_ids}\n".encode())
        for split in sorted({*self._labels, *self._masks}):
            for image in sorted(self._labels.get(split, ()), key=lambda row: row.name):
                digest.update(f"label\0{split}\0{image.name}\0{self.classes[image.label]}\n".encode())
            for row in sorted(self._masks.get(split, ()), key=lambda row: row.name):
                digest.update(f"mask\0{split}\0{row.name}\0{row.mask}\n".encode())
        for name in sorted(self._listed()):
            digest.update(f"{name}\0{hashlib.sha256(self.read(name)).hexdigest()}\n".encode())
        return digest.hexdigest()

    def _listed(self) -> dict[str, str]:
        """Every file that a table names -> the table."""
        files: dict[str, str] = {}
        for images in self._labels.values():
            files.update((image.name, _LABELS) for image in images)
        for rows in self._masks.values():
            for row in rows:
                files.setdefault(row.name, _MASKS)
                files.setdefault(row.mask, _MASKS)
        return files

    def _read_classes(self) -> tuple[dict[int, str], set[int]]:
        table = _read_table(self._source, self.url, _CLASSES)
        if table is None:
            return {}, set()
        _require(self.url, table, ("id", "name"))
        names: dict[int, str] = {}
        ignored = set()
        for row in table.rows:
            if not row["id"].isdigit() or int(row["id"]) > 65535:
                raise UserError(f"{self.url}: {table.name} has id '{row['id']}', which is not a whole number from 0 up")
            names[int(row["id"])] = row["name"]
            if row.get("ignore", "0") not in ("", "0"):
                ignored.add(int(row["id"]))
        if len(names) - len(ignored) > IGNORE:
            raise UserError(f"{self.url}: {table.name} has more than {IGNORE} classes")
        return names, ignored

    def _take_labels(self, table: _Table) -> None:
        names = {row["label"] for row in table.rows}
        listed = [name for id, name in sorted(self._named_ids.items()) if id not in self._ignored_ids]
        self.classes = tuple(listed) if names <= set(listed) else tuple(sorted(names))
        index = {name: number for number, name in enumerate(self.classes)}
        seen: set[str] = set()
        for row in table.rows:
            name = _clean(self.url, table.name, row["filename"])
            if name in seen:
                raise UserError(f"{self.url}: {table.name} lists '{name}' twice")
            seen.add(name)
            self._labels.setdefault(row["split"], []).append(LabelledImage(name, index[row["label"]]))
        self._check_splits(table.name, self._labels)
        known = {image.label for image in self._labels["train"]}
        for image in self._labels["test"]:
            if image.label not in known:
                raise UserError(
                    f"{self.url}: {table.name} has test images of class '{self.classes[image.label]}' "
                    "but no train image of it"
                )

    def _take_masks(self, table: _Table, column: str) -> None:
        seen: set[str] = set()
        for row in table.rows:
            name = _clean(self.url, table.name, row["filename"])
            if name in seen:
                raise UserError(f"{self.url}: {table.name} lists '{name}' twice")
            seen.add(name)
            mask = _clean(self.url, table.name, row[column])
            self._masks.setdefault(row["split"], []).append(MaskedImage(name, mask))
        self._check_splits(table.name, self._masks)

    def _check_splits(self, table: str, splits: Mapping[str, Any]) -> None:
        for split in ("train", "test"):
            if split not in splits:
                found = ", ".join(f"'{name}'" for name in sorted(splits))
                raise UserError(f"{self.url}: {table} has no row with split '{split}' (it has {found})")

    def _check_files_exist(self) -> None:
        listed = self._listed()
        missing = [name for name in listed if name not in self._source]
        if missing:
            raise UserError(
                f"{self.url}: {listed[missing[0]]} names '{missing[0]}', which is not there"
                + (f" ({len(missing)} of {len(listed)} files are missing)" if len(missing) > 1 else "")
            )
