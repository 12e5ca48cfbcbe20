"""Checks of values are read together, and the first that fails is the one that is raised."""

import pytest
import torch

from migelib import SSGE, GaussianScore, Stein, Tikhonov, entropy_surrogate, mutual_information_surrogate
from migelib.validation import check_samples, decide, fused_checks, require

TRUE, FALSE = torch.tensor(True), torch.tensor(False)


def test_outside_a_block_a_check_is_read_at_once():
    require(TRUE, lambda: ValueError("no"))
    with pytest.raises(ValueError, match="yes"):
        require(FALSE, lambda: ValueError("yes"))


@fused_checks()
def two_failures(reached):
    require(TRUE, lambda: ValueError("none"))
    require(FALSE, lambda: ValueError("first"))
    with fused_checks():
        require(FALSE, lambda: ValueError("second"))
    reached.append(True)


def test_inside_a_block_checks_wait_for_its_end_and_the_first_failure_is_raised():
    reached = []
    with pytest.raises(ValueError, match="first"):
        two_failures(reached)
    assert reached
    require(TRUE, lambda: ValueError("the block left nothing behind"))


def test_a_decision_reads_the_checks_before_it():
    with fused_checks():
        assert decide(TRUE)
        assert not decide(FALSE)
    with pytest.raises(ValueError, match="before"):
        decide_after_a_failure()


@fused_checks()
def decide_after_a_failure():
    require(FALSE, lambda: ValueError("before"))
    decide(TRUE)
    raise AssertionError("not reached")


@fused_checks()
def fail_on_nan():
    check_samples(torch.full((3, 2), torch.nan))
    raise RuntimeError("linear algebra")


def test_a_failed_check_is_raised_in_place_of_what_it_led_to():
    with pytest.raises(ValueError, match="samples: expected finite"):
        fail_on_nan()
    with pytest.raises(RuntimeError, match="of its own"), fused_checks():
        raise RuntimeError("of its own")


@pytest.mark.parametrize("estimator", [SSGE(), GaussianScore(), Stein(), Tikhonov(), Tikhonov(kernel="imq")], ids=str)
def test_surrogates_name_the_argument_whatever_fails_inside(estimator):
    bad = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    bad[3, 1] = torch.nan
    with pytest.raises(ValueError, match=r"z: expected finite entries, got 1 NaN"):
        entropy_surrogate(bad.requires_grad_(), estimator)
    with pytest.raises(ValueError, match=r"x: all samples are equal"):
        mutual_information_surrogate(torch.ones(8, 1), torch.randn(8, 2).requires_grad_(), estimator)


def test_an_estimator_of_ones_own_sees_checked_values_only():
    class Own:
        def fit(self, samples):
            raise AssertionError("reached")

    with pytest.raises(ValueError, match="z: expected finite"):
        entropy_surrogate(torch.full((4, 1), torch.inf, requires_grad=True), Own())
