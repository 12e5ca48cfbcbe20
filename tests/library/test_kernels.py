import pytest
import torch

from migelib import kernels


def brute_force_distances(x, y):
    return (x[..., :, None, :] - y[..., None, :, :]).norm(dim=-1)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_squared_distances(batch, generator):
    x = torch.randn(*batch, 7, 4, dtype=torch.float64, generator=generator)
    y = torch.randn(*batch, 5, 4, dtype=torch.float64, generator=generator)
    torch.testing.assert_close(kernels.squared_distances(x, y), brute_force_distances(x, y).square())


def test_squared_distances_survive_a_common_offset(generator):
    x = torch.randn(50, 3, generator=generator)
    # The inputs themselves are rounded to 1e-3 at this offset; without the shift the error is of order 100.
    torch.testing.assert_close(
        kernels.squared_distances(x + 1e4, x + 1e4), kernels.squared_distances(x, x), atol=2e-2, rtol=0
    )


@pytest.mark.parametrize("n", [2, 3, 10, 11])
def test_median_distance_is_the_upper_median_with_the_diagonal(n, generator):
    x = torch.randn(4, n, 3, dtype=torch.float64, generator=generator)
    expected = brute_force_distances(x, x).flatten(-2).sort(-1).values[:, n * n // 2]
    torch.testing.assert_close(kernels.median_distance(x), expected, rtol=1e-6, atol=1e-6)


def test_mean_gradient_agrees_with_automatic_differentiation(generator):
    x = torch.randn(2, 9, 3, dtype=torch.float64, generator=generator)
    width = torch.tensor([0.7, 1.9], dtype=torch.float64)
    fast = kernels.VectorKernel(x, x, width, "rbf", False).stein()
    for b in range(2):
        for j in range(9):
            moved = x[b].clone().requires_grad_()
            total = torch.exp(-(moved - x[b, j]).square().sum(-1) / (2 * width[b] ** 2)).mean()
            (slow,) = torch.autograd.grad(total, moved)
            torch.testing.assert_close(fast[b, j], slow.sum(0))


def test_equal_samples_have_a_median_distance_of_zero_exactly():
    for seed in range(30):  # with rounding in its place a few of these had a width of 1e-8
        x = torch.randn(100, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        x[15:] = x[15]
        assert float(kernels.median_distance(x)) == 0


@pytest.mark.parametrize("curl_free", [False, True])
@pytest.mark.parametrize("kernel", kernels.RADIAL_KERNELS)
def test_vector_kernels_follow_the_scale_of_the_samples(kernel, curl_free):
    generator = torch.Generator().manual_seed(0)
    x, c = torch.randn(40, 3, generator=generator), torch.randn(40, 3, generator=generator)

    def values(scale):
        built = kernels.VectorKernel(scale * x, scale * x, scale * kernels.median_distance(x), kernel, curl_free)
        units = (1, scale, scale, scale**2)
        methods = (built.apply(c), built.divergence(c), built.stein(), built.stein_divergence())
        return [unit * value for unit, value in zip(units, methods, strict=True)]

    for scale in (1e-8, 1e6):  # in single precision the eighth power of these is out of range
        for scaled, plain in zip(values(scale), values(1.0), strict=True):
            torch.testing.assert_close(scaled, plain, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("d", [1, 7, 8, 9])
def test_median_distance_of_a_tensor_of_torch_func(d, generator):
    x = torch.randn(2, 20, d, dtype=torch.float64, generator=generator)
    expected = kernels.median_distance(x)

    def check(y):
        torch.testing.assert_close(kernels.median_distance(y.detach()), expected)
        return y.sum()

    torch.func.grad(check)(x)  # such a tensor has no array for numpy
