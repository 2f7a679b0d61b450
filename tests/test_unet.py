"""The UNet's blocks against torch's own layers, its dropout, and its saving of memory."""

import pytest
import torch
from torch import nn

from implicitmeshnet.models.unet import InstanceNorm3d, ResidualBlock, UNet

CUBE = (3, 3, 3)
KEPT = (1, 1, 1)


def torchs_block(block, stride, kernel):
    """The same block of torch's layers, with the same weights under the same names."""
    channels, out_channels = block.skip.in_channels, block.skip.out_channels
    body = nn.Sequential(
        nn.Conv3d(channels, out_channels, kernel, stride, padding=[size // 2 for size in kernel], bias=False),
        nn.InstanceNorm3d(out_channels, affine=True),
        nn.LeakyReLU(0.01),
        nn.Dropout3d(0.0),
        nn.Conv3d(out_channels, out_channels, kernel, padding=[size // 2 for size in kernel], bias=False),
        nn.InstanceNorm3d(out_channels, affine=True),
    )
    other = nn.ModuleDict({"body": body, "skip": nn.Conv3d(channels, out_channels, 1, stride, bias=False)}).double()
    other.load_state_dict(block.state_dict())
    return other


@pytest.mark.parametrize(("stride", "kernel"), [(KEPT, CUBE), ((2, 2, 2), CUBE), ((2, 2, 1), CUBE), (KEPT, (3, 3, 1))])
def test_a_block_is_that_of_torchs_layers_and_so_are_its_gradients(stride, kernel):
    torch.manual_seed(0)
    block = ResidualBlock(2, 5, stride, kernel, 0.0).double()
    for norm in (block.body["1"], block.body["5"]):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    other = torchs_block(block, stride, kernel)
    volume = torch.randn(2, 2, 4, 6, 4, dtype=torch.float64, requires_grad=True)
    wanted = nn.functional.leaky_relu(other.body(volume) + other.skip(volume), 0.01)
    found = block(volume)
    torch.testing.assert_close(found, wanted)
    named = dict(other.named_parameters())
    gradients = torch.autograd.grad(found.square().sum(), [volume, *block.parameters()])
    torchs = torch.autograd.grad(
        wanted.square().sum(), [volume, *(named[name] for name, _ in block.named_parameters())]
    )
    for own, theirs in zip(gradients, torchs, strict=True):
        torch.testing.assert_close(own, theirs)


def test_dropout_zeroes_whole_channels_at_its_rate_and_only_in_training():
    torch.manual_seed(0)
    block = ResidualBlock(1, 64, KEPT, CUBE, 0.25)
    seen = []
    block.body["4"].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    volume = torch.randn(4, 1, 3, 3, 3)
    with torch.no_grad():
        block.train()(volume)
        block.eval()(volume)
    dropped, whole = seen
    of_channel = (dropped == 0).flatten(2).double().mean(2)
    assert of_channel.unique().tolist() == [0, 1]
    assert of_channel.mean().item() == pytest.approx(0.25, abs=0.08)  # of 256: 3 standard deviations
    kept = of_channel == 0
    torch.testing.assert_close(dropped[kept], whole[kept] / 0.75)


def test_dropout_follows_torchs_seed():
    block = ResidualBlock(1, 16, KEPT, CUBE, 0.5)
    volume = torch.randn(2, 1, 3, 3, 3)
    results = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        results.append(block(volume))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_flat_levels_look_at_one_slice_and_keep_their_number():
    torch.manual_seed(0)
    unet = UNet((4, 6, 8), (4, 6), 3, 0.0, flat_levels=(0, 0, 1)).eval()
    pyramid, logits = unet(torch.randn(1, 1, 8, 12, 6))
    shapes = {name: tuple(volume.shape[2:]) for name, volume in pyramid.items()}
    fine, middle = (8, 12, 6), (4, 6, 6)
    assert shapes == {"e0": fine, "e1": middle, "e2": (2, 3, 3), "d1": middle, "d0": fine}
    assert logits.shape == (1, 3, *fine)
    sizes = [block.body["0"].kernel_size for block in (*unet.encoder, *unet.decoder)]
    assert sizes == [(3, 3, 1), CUBE, CUBE, (3, 3, 1), CUBE]


def trained_step(unet, image):
    """The outputs of one step under a fixed seed, and all gradients."""
    unet.zero_grad()
    torch.manual_seed(3)
    pyramid, logits = unet(image)
    outputs = [*pyramid.values(), logits]
    sum(output.float().square().mean() for output in outputs).backward()
    return [*(output.detach() for output in outputs), *(weight.grad for weight in unet.parameters())]


def test_recomputing_gives_the_same_bits_with_dropout():
    torch.manual_seed(0)
    unet = UNet((4, 6, 8), (4, 6), 3, 0.1)
    image = torch.randn(2, 1, 12, 12, 12)
    kept = trained_step(unet, image)
    unet.recompute = True
    again = trained_step(unet, image)
    assert all(torch.equal(own, other) for own, other in zip(kept, again, strict=True))


def test_recomputing_runs_the_convolutions_of_the_levels_twice_in_training_alone():
    unet = UNet((4, 6), (4,), 3, 0.1)
    unet.recompute = True
    calls = []
    for block in (*unet.encoder, *unet.decoder):
        block.skip.register_forward_hook(lambda *_: calls.append(1))
    image = torch.randn(1, 1, 6, 6, 6)
    unet(image)[1].sum().backward()
    assert len(calls) == 6
    unet.eval()(image)[1].sum().backward()
    assert len(calls) == 9


def test_instance_norm_alone_is_torchs():
    norm = InstanceNorm3d(3)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    volume = torch.randn(2, 3, 4, 5, 3)
    torch.testing.assert_close(norm(volume), nn.functional.instance_norm(volume, weight=norm.weight, bias=norm.bias))


@pytest.mark.slow
def test_torch_compile_takes_the_unet_as_one_graph_with_the_same_gradients():
    """Without the compiler's last stage, which takes a minute."""
    torch.manual_seed(0)
    unet = UNet((4, 6), (4,), 3, 0.1)
    image = torch.randn(2, 1, 6, 6, 6)
    eager = trained_step(unet, image)
    unet.compile(backend="aot_eager", fullgraph=True)
    compiled = trained_step(unet, image)
    for own, other in zip(eager, compiled, strict=True):
        assert (own - other).norm() <= 0.02 * own.norm()
