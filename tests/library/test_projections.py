"""Fixed maps that stand for x: the random projection, and features of patches."""

import numpy as np
import pytest
import torch

from migelib.projections import PatchFeatures, RandomProjection


@pytest.fixture
def images():
    """Bars of random places and widths, with noise."""
    generator = torch.Generator().manual_seed(0)
    images = 0.3 * torch.randn(60, 1, 28, 28, generator=generator)
    for image in images:
        row, column = torch.randint(2, 22, (2,), generator=generator).tolist()
        image[:, row : row + 4] += 1
        image[:, :, column : column + 3] += 1
    return images


def test_a_random_projection_is_one_matrix_of_flattened_samples(images):
    projection = RandomProjection(784, 20, torch.Generator().manual_seed(1))
    matrix = torch.randn(784, 20, generator=torch.Generator().manual_seed(1)) / 28
    torch.testing.assert_close(projection(images), images.reshape(60, 784) @ matrix)
    assert list(projection.state_dict()) == ["matrix"]
    assert list(projection.parameters()) == []


@pytest.mark.parametrize("settings", [(0, 2), (2, 0), (2.0, 2)])
def test_random_projections_reject(settings):
    with pytest.raises(ValueError, match=r"(inputs|size): expected an integer"):
        RandomProjection(*settings)


def test_patch_features_match_a_slow_oracle(images):
    x = images[:20]
    features = PatchFeatures(x, filters=3, size=5, stride=3, patches=200, generator=torch.Generator().manual_seed(0))
    raw = torch.zeros(20, 3, 2, 2)
    for i in range(20):
        for f in range(3):
            for row in range(2):
                for column in range(2):
                    # 28 pixels give 8 places at stride 3, and 4 a cell.
                    places = [
                        (3 * a, 3 * b) for a in range(4 * row, 4 * row + 4) for b in range(4 * column, 4 * column + 4)
                    ]
                    values = [float((x[i, :, a : a + 5, b : b + 5] * features.weights[f]).sum()) for a, b in places]
                    raw[i, f, row, column] = np.mean([max(v - 1.0, 0.0) for v in values])
    raw = raw.flatten(1)
    expected = (raw - raw.mean(0)) / raw.std(0).clamp_min(1e-6)
    torch.testing.assert_close(features(x), expected, rtol=1e-3, atol=1e-3)


def test_patch_features_do_not_see_brightness(images):
    features = PatchFeatures(images, filters=8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(features(images + 3), features(images), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(("settings", "message"), [({"size": 40}, "pixels"), ({"patches": 4, "filters": 8}, "patches")])
def test_patch_features_reject(images, settings, message):
    with pytest.raises(ValueError, match=message):
        PatchFeatures(images, **settings)
