"""Stacks of networks: each is the network that it was made of, alone or beside others."""

import pytest
import torch
from torch import nn

from migelib.experiments.training import Stack, adam, descend


@pytest.fixture(params=[1, 3], ids="{} networks".format)
def networks(request):
    torch.manual_seed(0)
    layers = [(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)) for _ in range(request.param)]
    return [nn.Sequential(*own).double() for own in layers]


@pytest.fixture
def x(networks, generator):
    return torch.randn(len(networks), 6, 3, dtype=torch.float64, generator=generator)


def test_a_stack_trains_as_its_networks_do(networks, x):
    stack = Stack(networks)
    optimiser = adam(stack.parameters(), 0.1)
    for _ in range(3):
        descend(optimiser, stack(x).square().mean((-2, -1)))
    before = [network.state_dict()["0.weight"].clone() for network in networks]
    for row, (network, own) in enumerate(zip(networks, x, strict=True)):
        torch.testing.assert_close(network[0].weight, before[row], rtol=0, atol=0)  # the stack has copies
        optimiser = adam(network.parameters(), 0.1)
        for _ in range(3):
            descend(optimiser, network(own).square().mean())
        for name, value in network.state_dict().items():
            if name != "0.bias":  # before the normalisation it has no gradient but rounding, which Adam amplifies
                torch.testing.assert_close((stack.weights | stack.buffers)[name][row], value)
        torch.testing.assert_close(stack.eval()(x)[row], network.eval()(own))
        stack.train()


def test_parts_share_the_weights_and_rows_do_not(networks, x):
    stack = Stack(networks).eval()
    first, last = stack.part("0"), stack.part("3")
    assert [weight.shape[0] for weight in stack.parameters()] == [len(networks)] * 6
    torch.testing.assert_close(last(torch.tanh(stack.part("1")(first(x)))), stack(x))
    rows = stack.rows([-1, 0])
    torch.testing.assert_close(rows(x[[-1, 0]]), stack(x)[[-1, 0]])
    assert not rows(x[[-1, 0]]).requires_grad
    with torch.no_grad():
        for weight in first.parameters():
            weight.zero_()
    assert stack.weights["0.weight"].eq(0).all()
    assert not rows.weights["0.weight"].eq(0).any()
    first(x).sum().backward()
    assert [weight.grad is not None for weight in stack.parameters()] == [True, True, *[False] * 4]
    with pytest.raises(AttributeError):
        stack.part("head")


def test_frozen_networks_pass_gradients_to_their_inputs_only(networks, x):
    stack = Stack(networks)
    with stack.frozen():
        loss = stack(x.requires_grad_()).sum()
    loss.backward()
    assert x.grad is not None
    assert all(weight.grad is None and weight.requires_grad for weight in stack.parameters())
