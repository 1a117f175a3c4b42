"""Small evaluation sets as {name: content}, and the forms they come in."""

import io
import tarfile
import zipfile
from pathlib import Path

import fsspec
import numpy as np
from PIL import Image


def png(array, dtype=np.uint8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(array, dtype)).save(buffer, "PNG")
    return buffer.getvalue()


def palette_png(array) -> bytes:
    picture = Image.fromarray(np.asarray(array, np.uint8), mode="P")
    picture.putpalette([200, 10, 10] * 256)
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def npy(array) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(array))
    return buffer.getvalue()


def image(seed, shape=(6, 8, 3)) -> bytes:
    return png(np.random.default_rng(seed).integers(0, 256, shape))


def named(*names: str) -> dict[str, bytes]:
    """Files whose content nothing looks at."""
    return {name: name.encode() for name in names}


def write(folder: Path, files) -> str:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return str(folder)


def tar_of(files, mode="w") -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def zip_of(files) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


PACKINGS = ("folder", "memory", "tars inside", "set.tar.gz", "set.zip")


def packed(folder: Path, files, form: str) -> str:
    """URL of the set ``files`` in one of :data:`PACKINGS`; archives hold it below a folder of their own."""
    if form == "folder":
        return write(folder / "loose", files)
    if form == "memory":
        for name, data in files.items():
            fsspec.filesystem("memory").pipe_file(f"/{folder.name}/{name}", data)
        return f"memory://{folder.name}"
    if form == "tars inside":
        inside = {name: data for name, data in files.items() if "/" in name}
        rest = {name: data for name, data in files.items() if "/" not in name}
        return write(folder / "tars", {**rest, "one.tar": tar_of(dict(list(inside.items())[::2])),
                                       "two.tgz": tar_of(dict(list(inside.items())[1::2]), "w:gz")})  # fmt: skip
    below = {f"top/{name}": data for name, data in files.items()}
    content = zip_of(below) if form.endswith(".zip") else tar_of(below, "w:gz")
    return str(Path(write(folder, {form: content})) / form)
