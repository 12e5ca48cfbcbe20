"""Data sets: the look-up order, the parsers on small files of the same formats, and the embedded subset."""

import gzip
import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch

from migelib.experiments import data

RNG = np.random.default_rng(0)


def idx(array):
    """Bytes of a gzipped IDX file."""
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def tar(path, files):
    """Write an archive of files given as name -> bytes."""
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"folder/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def pixels(n, *shape):
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No MIGELIB_DATA, an empty cache, and a download that fails; the cache's folder."""
    monkeypatch.delenv("MIGELIB_DATA", raising=False)
    monkeypatch.setattr(data, "_cache", lambda: tmp_path / "cache")

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr("requests.sessions.Session.request", no_network)
    monkeypatch.setattr("time.sleep", lambda _: None)  # between pooch's retries
    return tmp_path / "cache"


def test_the_embedded_subset():
    mnist = data.load_mnist_5k()
    assert mnist.x_train.shape == (4000, 1, 28, 28)
    assert mnist.x_test.shape == (1000, 1, 28, 28)
    assert mnist.x_train.dtype == torch.uint8
    assert mnist.y_test.bincount().tolist() == [100] * 10
    assert mnist.y_train.bincount().tolist() == [400] * 10
    rows = torch.cat([mnist.x_train, mnist.x_test]).flatten(1)
    assert len(rows.unique(dim=0)) == 5000  # so that no test image is a training image
    assert (mnist.y_train[:100].bincount(minlength=10) > 0).all()  # shuffled, not class by class
    assert torch.equal(mnist.x_train, data.load_mnist_5k().x_train)


def test_images_for_networks_are_the_chosen_ones_with_values_up_to_one():
    mnist, some = data.load("mnist_5k"), torch.tensor([5, 3])
    images = data.load_images("mnist_5k", train=some, test=slice(0, 7))
    torch.testing.assert_close(images.x_train * 255, mnist.x_train[some].float())
    assert images.x_train.max() == 1
    assert torch.equal(images.y_train, mnist.y_train[some])
    assert torch.equal(images.y_test, mnist.y_test[:7])
    assert images.x_test.shape == (7, 1, 28, 28)
    assert len(data.load_images("mnist_5k").y_train) == 4000


@pytest.mark.parametrize("shape", [(28, 28), (32, 32, 3)])
def test_a_file_in_the_data_folder_comes_first(monkeypatch, tmp_path, shape):
    train, test = pixels(3, *shape), pixels(2, *shape)
    np.savez(tmp_path / "cifar10.npz", x_train=train, y_train=[0, 1, 2], x_test=test, y_test=np.uint8([1, 0]))
    monkeypatch.setenv("MIGELIB_DATA", str(tmp_path))
    found = data.load_cifar10()
    assert found.x_train.shape == (3, *((1, 28, 28) if len(shape) == 2 else (3, 32, 32)))
    assert found.y_test.tolist() == [1, 0]
    assert found.y_test.dtype == torch.int64
    pixel = train[1, 5, 7] if len(shape) == 2 else train[1, 5, 7, 2]
    assert found.x_train[1, -1, 5, 7] == pixel
    assert found.source == "cifar10.npz in $MIGELIB_DATA"


def test_a_file_can_say_where_it_is_from(monkeypatch, tmp_path):
    arrays = {"x_train": pixels(1, 4, 4), "y_train": [0], "x_test": pixels(1, 4, 4), "y_test": [0]}
    np.savez(tmp_path / "mnist.npz", **arrays, source="a copy")
    monkeypatch.setenv("MIGELIB_DATA", str(tmp_path))
    assert data.load_mnist().source == "a copy"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y_test": None}, "expected arrays x_train"),
        ({"x_train": np.zeros((2, 4, 4))}, "x_train: expected uint8 images"),
        ({"x_test": np.zeros((2, 16), np.uint8)}, "x_test: expected uint8 images"),
        ({"y_train": [0, 1, 2]}, "y_train: expected 2 integers"),
        ({"y_train": [0.5, 1.5]}, "y_train: expected 2 integers"),
    ],
)
def test_a_bad_file_is_named(monkeypatch, tmp_path, change, message):
    arrays = {"x_train": pixels(2, 4, 4), "y_train": [0, 1], "x_test": pixels(2, 4, 4), "y_test": [0, 1]} | change
    np.savez(tmp_path / "mnist.npz", **{name: array for name, array in arrays.items() if array is not None})
    monkeypatch.setenv("MIGELIB_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=rf"mnist\.npz: {message}"):
        data.load_mnist()


@pytest.mark.parametrize("name", ["mnist", "cifar10", "cifar100", "stl10"])
def test_when_nothing_works_the_error_names_all_three_places(offline, monkeypatch, tmp_path, name):
    with pytest.raises(FileNotFoundError) as error:
        getattr(data, f"load_{name}")()
    for part in (name, "MIGELIB_DATA", "not set", str(offline), data.CANONICAL[name].address, "no route to host"):
        assert part in str(error.value)
    monkeypatch.setenv("MIGELIB_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="which lacks it"):
        getattr(data, f"load_{name}")()


def put_into_cache(monkeypatch, cache, name, files):
    """Files, file name -> bytes, as an earlier download of data set `name`; their digests become the expected ones."""
    cache.mkdir(exist_ok=True)
    for file, content in files.items():
        (cache / file).write_bytes(content)
    digests = {file: hashlib.sha256(content).hexdigest() for file, content in files.items()}
    monkeypatch.setitem(data.CANONICAL, name, data.CANONICAL[name]._replace(files=digests))


def test_mnist_from_the_cache(offline, monkeypatch):
    train, test = pixels(5, 28, 28), pixels(2, 28, 28)
    content = [idx(train), idx(np.arange(5)), idx(test), idx(np.array([7, 9]))]
    put_into_cache(monkeypatch, offline, "mnist", dict(zip(data.CANONICAL["mnist"].files, content, strict=True)))
    mnist = data.load_mnist()
    assert torch.equal(mnist.x_train, torch.from_numpy(train)[:, None])
    assert mnist.y_train.tolist() == [0, 1, 2, 3, 4]
    assert torch.equal(mnist.x_test, torch.from_numpy(test)[:, None])
    assert mnist.y_test.tolist() == [7, 9]
    assert "downloaded" in mnist.source


def test_a_file_in_the_cache_with_another_digest_is_not_used(offline, monkeypatch):
    names = list(data.CANONICAL["mnist"].files)
    put_into_cache(monkeypatch, offline, "mnist", {name: idx(pixels(2, 28, 28)) for name in names})
    (offline / names[0]).write_bytes(idx(pixels(2, 28, 28)))
    with pytest.raises(FileNotFoundError, match="no route to host"):
        data.load_mnist()


@pytest.mark.parametrize(("name", "labels"), [("cifar10", 1), ("cifar100", 2)])
def test_cifar_from_the_cache(offline, monkeypatch, tmp_path, name, labels):
    images = pixels(6, 3, 32, 32)
    coarse_and_fine = np.stack([np.full(6, 99), np.arange(6)], axis=1)[:, -labels:].astype(np.uint8)
    records = np.concatenate([coarse_and_fine, images.reshape(6, -1)], axis=1)
    files = {"data_batch_1.bin": records[:2], "data_batch_2.bin": records[2:4], "test_batch.bin": records[4:]}
    if name == "cifar100":
        files = {"test.bin": records[4:], "train.bin": records[:4], "fine_label_names.txt": np.uint8([65])}
    archive = tar(tmp_path / "archive", {file: part.tobytes() for file, part in files.items()})
    put_into_cache(monkeypatch, offline, name, {next(iter(data.CANONICAL[name].files)): archive.read_bytes()})
    cifar = getattr(data, f"load_{name}")()
    assert torch.equal(torch.cat([cifar.x_train, cifar.x_test]), torch.from_numpy(images))
    assert cifar.y_train.tolist() == [0, 1, 2, 3]
    assert cifar.y_test.tolist() == [4, 5]


def test_stl10_from_the_cache(offline, monkeypatch, tmp_path):
    images = {part: pixels(n, 3, 96, 96) for part, n in (("train", 3), ("test", 2), ("unlabeled", 4))}
    # The files hold each channel column by column.
    files = {f"{part}_X.bin": array.transpose(0, 1, 3, 2).tobytes() for part, array in images.items()}
    files |= {"train_y.bin": bytes([1, 10, 3]), "test_y.bin": bytes([2, 1]), "class_names.txt": b"airplane"}
    archive = tar(tmp_path / "archive", files)
    put_into_cache(monkeypatch, offline, "stl10", {"stl10_binary.tar.gz": archive.read_bytes()})
    stl10 = data.load_stl10()
    assert torch.equal(stl10.x_train, torch.from_numpy(images["train"]))
    assert torch.equal(stl10.x_unlabelled, torch.from_numpy(images["unlabeled"]))
    assert stl10.y_train.tolist() == [0, 9, 2]
    assert stl10.y_test.tolist() == [1, 0]


def test_what_is_no_idx_file_is_named(tmp_path):
    for content, message in (
        (gzip.compress(b"\x00\x00\x0d\x01"), "expected an IDX file of unsigned bytes"),
        (gzip.compress(gzip.decompress(idx(np.arange(5)))[:-1]), "expected 5 values"),
    ):
        (tmp_path / "file.gz").write_bytes(content)
        with pytest.raises(ValueError, match=message):
            data.parse_idx(tmp_path / "file.gz")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"data_batch_1.bin": bytes(3000)}, "expected records of 3073 bytes, got 3000"),
        ({"data_batch_1.bin": bytes(3073)}, "of training and of test images"),
    ],
)
def test_what_is_no_cifar_archive_is_named(tmp_path, files, message):
    with pytest.raises(ValueError, match=message):
        data.parse_cifar([tar(tmp_path / "archive", files)])


def test_an_stl10_archive_without_a_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"test_X\.bin"):
        data.parse_stl10([tar(tmp_path / "archive", {"train_X.bin": bytes(96 * 96 * 3)})])
