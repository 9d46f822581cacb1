"""Network pieces against their plain definitions."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vla_rl.errors import UserError
from vla_rl.nn.ensemble import EnsembleMLP, mlp, polyak
from vla_rl.nn.images import ImageEncoder, RandomShift
from vla_rl.nn.normalize import Normalizer


def single(ensemble: EnsembleMLP, member: int) -> nn.Sequential:
    """An ordinary network with the weights of one member."""
    sizes = [ensemble.weights[0].shape[1], *(w.shape[2] for w in ensemble.weights)]
    net = mlp(sizes[0], sizes[1:-1], sizes[-1], layer_norm=ensemble.layer_norm)
    linear = [m for m in net if isinstance(m, nn.Linear)]
    norms = [m for m in net if isinstance(m, nn.LayerNorm)]
    with torch.no_grad():
        for layer, w, b in zip(linear, ensemble.weights, ensemble.biases, strict=True):
            layer.weight.copy_(w[member].T)
            layer.bias.copy_(b[member, 0])
        for layer, w, b in zip(norms, ensemble.scales, ensemble.shifts, strict=True):
            layer.weight.copy_(w[member, 0])
            layer.bias.copy_(b[member, 0])
    return net


@pytest.mark.parametrize("layer_norm", [True, False])
def test_ensemble_equals_a_loop_of_single_networks(layer_norm: bool) -> None:
    torch.manual_seed(0)
    ensemble = EnsembleMLP(4, 7, (32, 16), 2, layer_norm=layer_norm)
    for parameter in [*ensemble.scales, *ensemble.shifts]:
        nn.init.normal_(parameter)
    x = torch.randn(9, 7)
    values = ensemble(x)
    weight = torch.randn_like(values)
    (values * weight).sum().backward()
    for member in range(4):
        net = single(ensemble, member)
        expected = net(x)
        torch.testing.assert_close(values[member], expected, rtol=1e-5, atol=1e-5)
        (expected * weight[member]).sum().backward()
        first = next(m for m in net if isinstance(m, nn.Linear))
        torch.testing.assert_close(
            ensemble.weights[0].grad[member].T, first.weight.grad, rtol=1e-4, atol=1e-4
        )


def test_a_subset_of_members_is_those_members() -> None:
    ensemble, x = EnsembleMLP(5, 3, (8,)), torch.randn(6, 3)
    members = torch.tensor([4, 1])
    torch.testing.assert_close(ensemble(x, members), ensemble(x)[members])


def test_polyak_and_zero_last() -> None:
    a, b = mlp(3, (4,), 2), mlp(3, (4,), 2, zero_last=True)
    assert torch.equal(b(torch.randn(5, 3)), torch.zeros(5, 2))
    expected = [0.9 * p + 0.1 * q for p, q in zip(a.parameters(), b.parameters(), strict=True)]
    polyak(a, b, 0.1)
    for got, want in zip(a.parameters(), expected, strict=True):
        torch.testing.assert_close(got, want)


def test_normalizer_merges_batches_then_freezes() -> None:
    data = torch.randn(1000, 3) * torch.tensor([1.0, 5.0, 0.0]) + torch.tensor([0.0, 10.0, 2.0])
    normalizer = Normalizer(3, clamp=4.0)
    for part in data.split([10, 300, 690]):
        normalizer.update(part)
    torch.testing.assert_close(normalizer.mean, data.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(normalizer.variance, data.var(0, correction=0), rtol=1e-4, atol=1e-4)
    normalizer.freeze()
    before = {k: v.clone() for k, v in normalizer.state_dict().items()}
    normalizer.update(data + 100)
    assert all(torch.equal(v, before[k]) for k, v in normalizer.state_dict().items())
    out = normalizer(torch.tensor([[0.0, 1e6, 2.0]]))
    assert out[0, 1] == 4.0 and abs(out[0, 2]) < 1e-2


def test_random_shift_moves_whole_pixels_per_image() -> None:
    images = torch.arange(2 * 3 * 12 * 12).remainder(251).view(2, 3, 12, 12).to(torch.uint8)
    shift = RandomShift(3)
    out = shift(images, torch.Generator().manual_seed(1))
    assert out.dtype == torch.uint8 and out.shape == images.shape
    assert torch.equal(out, shift(images, torch.Generator().manual_seed(1)))
    padded = nn.functional.pad(images.float(), (3, 3, 3, 3), mode="replicate").to(torch.uint8)
    for i in range(2):
        windows = [padded[i, :, y : y + 12, x : x + 12] for y in range(7) for x in range(7)]
        assert any(torch.equal(out[i], w) for w in windows)
    assert torch.equal(RandomShift(0)(images), images)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_a_shift_repeats_the_edge_as_a_padded_crop_does(dtype) -> None:
    images = torch.randint(0, 256, (40, 3, 9, 11)).to(dtype)
    drawn = torch.randint(-4, 5, (2, 40, 1), generator=torch.Generator().manual_seed(3))
    padded = nn.functional.pad(images.float(), (4, 4, 4, 4), mode="replicate").to(dtype)
    wanted = [
        padded[i, :, 4 + down : 13 + down, 4 + aside : 15 + aside]
        for i, (down, aside) in enumerate(drawn[..., 0].T.tolist())
    ]
    assert torch.equal(RandomShift(4)(images, torch.Generator().manual_seed(3)), torch.stack(wanted))


@pytest.mark.parametrize("kind", ["vit", "conv", "keypoints"])
def test_image_encoder(kind: str) -> None:
    cameras = {"observation.images.a": (64, 64), "observation.images.b": (48, 40)}
    encoder = ImageEncoder(cameras, features=16, kind=kind, dim=16)
    images = {k: torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8) for k, size in cameras.items()}
    out = encoder(images)
    assert out.shape == (2, 32) == (2, encoder.features)
    out.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in encoder.parameters())
    alone = encoder({k: v[:1] for k, v in images.items()})
    torch.testing.assert_close(alone, out[:1], rtol=1e-4, atol=1e-5)


def test_image_encoder_refuses_what_it_cannot_read() -> None:
    with pytest.raises(UserError, match="choose vit, conv, keypoints"):
        ImageEncoder({"a": (64, 64)}, kind="resnet")
    with pytest.raises(UserError, match="at least 20"):
        ImageEncoder({"a": (8, 64)})


@pytest.mark.learning
@pytest.mark.parametrize("layer_norm", [False, True])
def test_a_compiled_ensemble_has_the_same_values_and_gradients(layer_norm):
    torch.manual_seed(0)
    critic = EnsembleMLP(3, 5, [16, 16], layer_norm=layer_norm).requires_grad_(False)
    found = []
    for function in (critic, torch.compile(critic, fullgraph=True)):
        x = torch.linspace(-2, 2, 40).reshape(8, 5).requires_grad_()
        values = function(x)
        values.square().sum().backward()
        found.append((values.detach(), x.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)
