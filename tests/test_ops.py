"""All ops alike: what they refuse and how, their derivatives beyond the first, torch's transforms, and huge volumes."""

import contextlib
import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad, gradcheck, gradgradcheck

from implicitmeshnet.mesh import icosphere, neighbours
from implicitmeshnet.ops import (
    compiled,
    instance_norm_leaky_relu,
    layer_norm_leaky_relu,
    mesh2sdf,
    neighbour_sum,
    reference,
    sample_trilinear,
    splat_trilinear,
    voxelize,
)

SHAPE = (4, 3, 5)
OPERATORS = torch.ops.implicitmeshnet
needs_kernels = pytest.mark.skipif(not compiled(), reason="no compiled library")


def data(dtype=torch.float64):
    """Each op with arguments by name; positions within cells and beyond the cube, away from kinks."""
    generator = torch.Generator().manual_seed(0)
    vertices, faces = icosphere(1)
    around = neighbours(faces, len(vertices))
    points = torch.rand(2, 6, 3, generator=generator, dtype=dtype) * 2.4 - 1.2
    features = torch.randn(2, 6, 3, generator=generator, dtype=dtype)
    volume = torch.randn(2, 3, *SHAPE, generator=generator, dtype=dtype)
    at_vertices = torch.randn(2, len(vertices), 4, generator=generator, dtype=dtype)
    residual = torch.randn(2, 3, *SHAPE, generator=generator, dtype=dtype)
    mesh = {"vertices": (0.7 * vertices).to(dtype), "faces": faces, "shape": SHAPE}
    return {
        mesh2sdf: mesh,
        voxelize: mesh,
        splat_trilinear: {"vertices": points, "features": features, "shape": SHAPE},
        sample_trilinear: {"volume": volume, "vertices": points},
        neighbour_sum: {"features": at_vertices, "index": around.index, "weight": around.weight.to(dtype)},
        layer_norm_leaky_relu: {"features": at_vertices},
        instance_norm_leaky_relu: {
            "volume": volume,
            "weight": torch.tensor([1.5, -0.5, 1], dtype=dtype),
            "bias": torch.tensor([0.1, 0.2, -1], dtype=dtype),
            "residual": residual,
            "multiplier": torch.tensor([[0, 2, 1], [1, 0.5, 2]], dtype=dtype),
        },
    }


def name_of(value):
    return getattr(value, "__name__", str(value))


ARGUMENTS = [
    (op, name)
    for op, arguments in data().items()
    for name, value in arguments.items()
    if isinstance(value, torch.Tensor)
]
CONSTANTS = [(voxelize, "vertices"), (neighbour_sum, "weight"), (instance_norm_leaky_relu, "multiplier")]
FLOATING = [pair for pair in ARGUMENTS if data()[pair[0]][pair[1]].is_floating_point() and pair not in CONSTANTS]
ONCE = (mesh2sdf, instance_norm_leaky_relu)  # ops that have no second derivative
INSTEAD = {
    "None": lambda tensor: None,
    "an array": lambda tensor: tensor.numpy(),
    "a list": lambda tensor: tensor.tolist(),
    "a number": lambda tensor: 1.5,
    "sparse": lambda tensor: tensor.to_sparse(),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "of 8 bits": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "a truth": lambda tensor: tensor.bool(),
    "without dimensions": lambda tensor: tensor.flatten()[0],
}


def refusal(op, arguments):
    """The one sentence with which an op refuses arguments."""
    with pytest.raises((TypeError, ValueError)) as caught:
        op(**arguments)
    text = str(caught.value)
    assert "\n" not in text
    assert re.fullmatch(r"\w+: wanted .+, found .+", text), text
    return text


@pytest.mark.parametrize(
    ("op", "name", "instead"),
    [
        (op, name, instead)
        for op, name in ARGUMENTS
        for instead in INSTEAD
        if instead != "None" or name not in ("residual", "multiplier")
    ],
    ids=name_of,
)
def test_what_is_no_such_tensor_is_refused_by_name(op, name, instead):
    arguments = data(torch.float32)[op]
    text = refusal(op, arguments | {name: INSTEAD[instead](arguments[name])})
    assert text.startswith(f"{name}: wanted")


@pytest.mark.parametrize(
    ("op", "name"),
    [
        pair
        for pair in ARGUMENTS
        if (pair[0] is not layer_norm_leaky_relu and pair[1] != "volume") or pair[0] is sample_trilinear
    ],
    ids=name_of,
)
def test_tensors_on_different_devices_are_refused(op, name):
    arguments = data(torch.float32)[op]
    text = refusal(op, arguments | {name: arguments[name].to("meta")})
    assert re.fullmatch(r"\w+: wanted device (cpu|meta) like the (vertices|index|volume), found (cpu|meta)", text)


@pytest.mark.parametrize("instead", [None, "volume", 3, [None], [[1.0]], (np.zeros((2, 3, 4, 5, 6)),)])
def test_what_is_no_list_of_volumes_is_refused(instead):
    text = refusal(sample_trilinear, data()[sample_trilinear] | {"volume": instead})
    assert text.startswith("volume: wanted a tensor")


@pytest.mark.parametrize("op", data(), ids=name_of)
def test_on_the_meta_device_all_have_their_shapes_and_no_values(op):
    arguments = data(torch.float32)[op]
    meta = {name: value.to("meta") if isinstance(value, torch.Tensor) else value for name, value in arguments.items()}
    expected, found = op(**arguments), op(**meta)
    assert found.device.type == "meta"
    assert (found.shape, found.dtype, found.stride()) == (expected.shape, expected.dtype, expected.stride())


def test_a_graph_is_an_index_and_a_weight_of_two_dimensions():
    arguments = data(torch.float32)[neighbour_sum]
    index, weight = arguments["index"], arguments["weight"]
    both = {"index": index[..., None].expand(-1, -1, 2), "weight": weight[..., None].expand(-1, -1, 2)}
    assert refusal(neighbour_sum, arguments | both) == "index: wanted shape (V, D), found (42, 6, 2)"
    both = {"index": index[:, 0], "weight": weight[:, 0]}
    assert refusal(neighbour_sum, arguments | both) == "index: wanted shape (V, D), found (42,)"
    assert refusal(neighbour_sum, arguments | {"index": index.int()}) == "index: wanted int64, found torch.int32"
    learnt = weight.clone().requires_grad_()
    assert refusal(neighbour_sum, arguments | {"weight": learnt}).startswith("weight: wanted constants")
    with torch.no_grad():
        assert torch.equal(neighbour_sum(**arguments | {"weight": learnt}), neighbour_sum(**arguments))
    nothing = neighbour_sum(torch.zeros(2, 0, 4), torch.zeros(0, 6).long(), torch.zeros(0, 6))
    assert (
        nothing.shape
        == reference.neighbour_sum(torch.zeros(2, 0, 4), torch.zeros(0, 6).long(), torch.zeros(0, 6), False).shape
        == (2, 0, 4)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("op", [neighbour_sum, layer_norm_leaky_relu], ids=name_of)
def test_half_precision_is_computed_in_float32(op, dtype):
    arguments = data(torch.float32)[op]
    features = arguments["features"].to(dtype).requires_grad_()
    found = op(**arguments | {"features": features})
    assert torch.equal(found, op(**arguments | {"features": features.float()}).to(dtype))
    found.float().square().sum().backward()
    assert features.grad.dtype == dtype
    assert features.grad.isfinite().all()


def test_autocast_may_hand_the_graph_ops_half_precision():
    arguments = data(torch.float32)[neighbour_sum]
    linear = torch.nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        hidden = linear(arguments["features"])
        assert hidden.dtype == torch.bfloat16
        result = layer_norm_leaky_relu(neighbour_sum(**arguments | {"features": hidden}))
    result.float().square().sum().backward()
    assert linear.weight.grad.isfinite().all()


@pytest.mark.parametrize("op", [mesh2sdf, voxelize, splat_trilinear], ids=name_of)
@pytest.mark.parametrize("shape", [(2**24 + 1, 4, 4), (4, 2**31, 4), (4, 4, 2**62), 2**64, -1, (4, 4, -(2**63))])
def test_a_shape_beyond_what_positions_tell_apart_is_refused(op, shape):
    assert refusal(op, data()[op] | {"shape": shape}).startswith("shape: wanted one or three integers from")


@pytest.mark.parametrize("op", [mesh2sdf, voxelize, splat_trilinear], ids=name_of)
@pytest.mark.parametrize("shape", [2**21, 2**24, (2**24, 2**19, 2**21), (2**20, 2**20, 2**10), (2**24, 2**23, 2)])
def test_a_result_beyond_memory_is_the_allocators_error(op, shape):
    """Some of these products overflow 64 bits, to 0 among others; the smallest is 256 TB."""
    with pytest.raises(RuntimeError, match=r"can't allocate memory|[Oo]verflow"):
        op(**data()[op] | {"shape": shape})


def test_huge_results_of_nothing_are_empty():
    for channels_last in (False, True):
        splatted = splat_trilinear(torch.zeros(0, 4, 3), torch.zeros(0, 4, 2), 2**18, channels_last)
        assert splatted.shape == (0, 2, 2**18, 2**18, 2**18)
        assert splat_trilinear(torch.zeros(1, 4, 3), torch.zeros(1, 4, 0), 2**18, channels_last).numel() == 0
    assert mesh2sdf(torch.zeros(0, 3, 3), torch.tensor([[0, 1, 2]]), 2**20).numel() == 0


@pytest.mark.parametrize("op", [mesh2sdf, voxelize], ids=name_of)
def test_more_faces_or_vertices_than_32_bits_number_are_refused(op):
    arguments = data(torch.float32)[op]
    many = arguments["faces"][:1].expand(2**31, 3)
    assert refusal(op, arguments | {"faces": many}) == "faces: wanted at most 2147483647, found 2147483648"
    if op is mesh2sdf:  # voxelize reads them before, to find those that are not finite
        many = arguments["vertices"][:1].expand(2**31, 3)
        assert refusal(op, arguments | {"vertices": many}) == "vertices: wanted at most 2147483647, found 2147483648"


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(0, 2), st.integers(1200, 3000), st.lists(st.floats(-1.125, 1.125, width=32), min_size=3, max_size=3))
def test_volumes_of_more_voxels_than_32_bits_number_are_read(axis, size, position):
    """1.7 to 27 billion voxels, of which those along one axis alone are not the same memory: values i and channel c."""
    sizes = [1, 1, 1]
    sizes[axis] = size
    line = torch.stack([torch.arange(float(size)), torch.arange(float(size)) + 7]).view(1, 2, *sizes)
    volume = line.expand(1, 2, size, size, size)
    points = torch.tensor(position).view(1, 1, 3)
    expected = (points[0, 0, axis].clamp(-1, 1) + 1) * ((size - 1) / 2)
    found = sample_trilinear(volume, points.requires_grad_())
    torch.testing.assert_close(found.detach()[0, 0], expected.detach() + torch.tensor([0.0, 7]), rtol=1e-6, atol=1e-3)
    (slope,) = torch.autograd.grad(found.sum(), points)
    inside = abs(position[axis]) <= 1
    assert slope[0, 0, axis].item() == pytest.approx((size - 1) * inside, rel=1e-3)


def test_a_huge_volume_of_channels_side_by_side_is_read():
    """2^31 voxels and more of address space, of which the few pages that are written and read become memory."""
    side = 1300
    volume = torch.empty(side**3, dtype=torch.bfloat16).as_strided(
        (1, 1, side, side, side), (side**3, 1, side * side, side, 1)
    )
    volume[0, 0, -2:, -2:, -2:] = torch.arange(8.0).view(2, 2, 2).bfloat16()
    points = torch.tensor([[[1.0, 1, 1], [1 - 1 / (side - 1)] * 3]])
    torch.testing.assert_close(sample_trilinear(volume, points)[0, :, 0], torch.tensor([7.0, 3.5]), rtol=0, atol=1e-2)


def test_a_volume_with_an_axis_beyond_what_positions_tell_apart_is_refused():
    volume = torch.zeros(1, 1, 1, 1, 1).expand(1, 1, 2, 2**24 + 1, 2)
    text = refusal(sample_trilinear, {"volume": volume, "vertices": torch.zeros(1, 1, 3)})
    assert text == "volume: wanted at most 16777216 voxels along an axis, found shape (1, 1, 2, 16777217, 2)"
    widest = torch.zeros(1, 1, 1, 1, 1).expand(1, 1, 2, 2**24, 2)
    assert sample_trilinear(widest, torch.tensor([[[1.0, 1, 1], [0, 0, 0], [-1, -1, -1]]])).tolist() == [[[0]] * 3][0:1]


def of_one(op, name):
    """The op as a function of one argument, and that argument, in float64."""
    arguments = data()[op]
    return lambda value: op(**arguments | {name: value}), arguments[name]


@pytest.mark.parametrize(("op", "name"), [pair for pair in FLOATING if pair[0] not in ONCE], ids=name_of)
def test_second_derivatives_are_right(op, name):
    function, value = of_one(op, name)
    value = value.clone().requires_grad_()
    assert gradgradcheck(lambda each: function(each).square(), value, fast_mode=True)


def test_second_derivatives_in_several_arguments_are_right():
    """The mixed ones too, of lists of volumes, of features that depend on the positions, and the third derivative."""
    generator = torch.Generator().manual_seed(1)
    arguments = data()
    points, features, _ = (value for value in arguments[splat_trilinear].values())
    volume = arguments[sample_trilinear]["volume"]
    other = torch.randn(2, 2, 1, 3, 2, generator=generator, dtype=torch.float64)
    weights = torch.randn(2, 3, *SHAPE, generator=generator, dtype=torch.float64)
    points, features, volume, other = (each.clone().requires_grad_() for each in (points, features, volume, other))

    def splat(points, features):
        return (weights * splat_trilinear(points, features, SHAPE, channels_last=True)).square()

    def itself(points):
        return (weights * splat_trilinear(points, points.sin(), SHAPE)).square()

    def sample(volume, other, points):
        return sample_trilinear([volume, other], points).square()

    def slope(points):
        (first,) = torch.autograd.grad(sample(volume.detach(), other.detach(), points).sum(), points, create_graph=True)
        return first

    assert gradgradcheck(splat, (points, features), fast_mode=True)
    assert gradgradcheck(itself, points, fast_mode=True)
    assert gradgradcheck(sample, (volume, other, points), fast_mode=True)
    assert gradcheck(slope, points)
    assert gradgradcheck(slope, points, fast_mode=True)


def test_second_derivatives_of_sums_with_own_half_are_right():
    arguments = data()[neighbour_sum]
    features = arguments["features"].clone().requires_grad_()
    assert gradgradcheck(
        lambda x: neighbour_sum(**arguments | {"features": x}, own=True).square(), features, fast_mode=True
    )


def test_second_derivatives_do_not_cross_what_the_arguments_depend_on():
    """Features that are made from the positions: only the chain rule adds their part."""
    points, _, _ = data()[splat_trilinear].values()
    weights = torch.randn(2, 3, *SHAPE, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    leaf = points.clone().requires_grad_()
    results = []
    for splat in (lambda p, f: splat_trilinear(p, f, SHAPE), lambda p, f: reference.splat(p, f, SHAPE)):
        value = (weights * splat(leaf, leaf.square())).square().sum()
        (first,) = torch.autograd.grad(value, leaf, create_graph=True)
        results.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    torch.testing.assert_close(*results)


def test_second_derivatives_on_the_cubes_border_are_those_within():
    """At +-1 a position is not yet clamped; at voxel centres the cell is the higher one, at +1 the last."""
    volume = data()[sample_trilinear]["volume"][:1]
    border = torch.tensor([[[1.0, 1, 1], [-1, -1, -1], [1, -1, 0.2], [-1, 1, 1]]], dtype=torch.float64)
    seconds = []
    for points in (border, border * (1 - 1e-9)):
        leaf = points.clone().requires_grad_()
        (first,) = torch.autograd.grad(sample_trilinear(volume, leaf).sum(), leaf, create_graph=True)
        seconds.append(torch.autograd.grad(first.square().sum(), leaf)[0])
    assert seconds[0].abs().min() > 0.01
    torch.testing.assert_close(*seconds, rtol=1e-6, atol=1e-6)


def tangents(op, name):
    """Ways to ask for a derivative in forward mode."""
    function, value = of_one(op, name)
    ones = torch.ones_like(value)

    def dual(value):
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(function(forward_ad.make_dual(value, ones))).tangent

    def closed_over(value):
        """The inner level sees no tangent of its own."""
        return torch.func.jvp(
            lambda x: torch.func.jvp(lambda y: function(x).sum() * y, (x,), (ones,))[1], (value,), (ones,)
        )[1]

    def compiled_jvp(value):
        return torch.compile(lambda x: torch.func.jvp(function, (x,), (ones,))[1], backend="aot_eager")(value)

    def without_grad(value):
        with torch.no_grad():
            return dual(value)

    return {
        "dual": dual,
        "without grad": without_grad,
        "dual that requires grad": lambda x: dual(x.requires_grad_()),
        "jvp": lambda x: torch.func.jvp(function, (x,), (ones,))[1],
        "jacfwd": torch.func.jacfwd(function),
        "jvp of jvp": closed_over,
        "compiled": compiled_jvp,
        "jvp of vmap": lambda x: torch.func.jvp(torch.func.vmap(function), (x[None],), (ones[None],))[1],
        "hessian": torch.func.hessian(lambda x: function(x).square().sum()),
    }


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("way", tangents(*FLOATING[0]))
@pytest.mark.parametrize(("op", "name"), FLOATING, ids=name_of)
def test_forward_mode_is_refused(op, name, way):
    """The op's own sentence, but where torch refuses before."""
    _, value = of_one(op, name)
    with pytest.raises((NotImplementedError, RuntimeError)) as caught:
        tangents(op, name)[way](value.clone())
    sentence = r"\w+: wanted a derivative in reverse mode, found one in forward mode, which it does not have"
    assert way in ("hessian", "jvp of vmap") or re.fullmatch(sentence, str(caught.value))


@pytest.mark.parametrize(("op", "name"), FLOATING, ids=name_of)
def test_a_tangent_that_is_gone_is_no_tangent(op, name):
    function, value = of_one(op, name)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(value, torch.ones_like(value))
        assert torch.equal(function(forward_ad.unpack_dual(dual).primal), function(value))
    assert torch.equal(function(dual), function(value))


def test_voxelize_has_no_derivative_to_drop():
    function, value = of_one(voxelize, "vertices")
    found, tangent = torch.func.jvp(function, (value,), (torch.ones_like(value),))
    assert torch.equal(found, function(value))
    assert not tangent.any()


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("op", "name"), FLOATING, ids=name_of)
def test_vmap_is_right_or_refused(op, name):
    """Torch runs an op without a rule of its own item by item, but none that takes a list."""
    function, value = of_one(op, name)
    values = torch.stack([value, 0.9 * value, 1.1 * value])
    if op is sample_trilinear:
        with pytest.raises(RuntimeError, match="Batching rule not implemented for implicitmeshnet::gather"):
            torch.func.vmap(function)(values)
        return
    torch.testing.assert_close(torch.func.vmap(function)(values), torch.stack([function(each) for each in values]))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(("op", "name"), FLOATING, ids=name_of)
def test_batched_gradients_are_right_or_refused(op, name):
    function, value = of_one(op, name)
    leaf = value.clone().requires_grad_()
    result = function(leaf)
    weights = torch.randn(3, *result.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if (op, name) in ((splat_trilinear, "features"), (sample_trilinear, "vertices")):
        with pytest.raises(RuntimeError, match="Batching rule not implemented for implicitmeshnet::"):
            torch.autograd.grad(result, leaf, weights, is_grads_batched=True)
        return
    expected = torch.stack([torch.autograd.grad(result, leaf, each, retain_graph=True)[0] for each in weights])
    (found,) = torch.autograd.grad(result, leaf, weights, is_grads_batched=True)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("way", ["grad", "jacrev", "vjp"])
@pytest.mark.parametrize(("op", "name"), FLOATING, ids=name_of)
def test_reverse_mode_by_functorch_is_refused(op, name, way):
    function, value = of_one(op, name)
    ways = {
        "grad": torch.func.grad(lambda x: function(x).sum()),
        "jacrev": torch.func.jacrev(function),
        "vjp": lambda x: torch.func.vjp(function, x),
    }
    with pytest.raises(RuntimeError, match="functorch transforms"):
        ways[way](value)


def test_mesh2sdf_notices_faces_and_vertices_that_changed_since():
    arguments = data(torch.float32)[mesh2sdf]
    for name in ("vertices", "faces"):
        changed = {key: value.clone() if key == name else value for key, value in arguments.items()}
        leaf = changed["vertices"].requires_grad_()
        sdf = mesh2sdf(leaf, changed["faces"], SHAPE)
        with torch.no_grad():
            changed[name].add_(0)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            sdf.sum().backward()


@pytest.mark.parametrize("value", [-1, 42, 10**9, -(2**62)])
def test_mesh2sdf_notices_faces_that_changed_behind_torchs_back(value):
    """An array shares the memory and no version counter."""
    arguments = data(torch.float32)[mesh2sdf]
    array = arguments["faces"].numpy().copy()
    leaf = arguments["vertices"].requires_grad_()
    sdf = mesh2sdf(leaf, torch.from_numpy(array), SHAPE)
    array[3, 1] = value
    with pytest.raises(ValueError, match=f"faces: wanted vertex indices from 0 to 41, found {value}"):
        sdf.sum().backward()


def private_calls():
    """Every op that the dispatcher knows, with arguments that fit."""
    arguments = data(torch.float32)
    vertices, faces, _ = arguments[mesh2sdf].values()
    points, features, _ = arguments[splat_trilinear].values()
    volume = arguments[sample_trilinear]["volume"]
    at_vertices, index, weight = arguments[neighbour_sum].values()
    normed = arguments[instance_norm_leaky_relu].values()
    result, mean, scale = OPERATORS.instance_norm_leaky_relu(*normed, 0.1)
    _, weight_of_norm, _, residual, multiplier = normed
    sdf, face = OPERATORS.mesh2sdf(vertices[None], faces, SHAPE)
    return {
        "mesh2sdf": (vertices[None], faces, SHAPE),
        "mesh2sdf_backward": (torch.ones_like(sdf), vertices[None], faces, sdf, face),
        "voxelize": (vertices, faces, SHAPE),
        "splat": (points, features, SHAPE),
        "splat_backward": (volume, points, features),
        "gather": ([volume], points),
        "position_gradient": ([volume], points, features),
        "crossing_pairs": ((100 * vertices).long(), faces, faces[:, 0] > 5),
        "distance_to_mesh": (points[0].double(), vertices.double(), faces),
        "neighbour_sum": (at_vertices, index, weight, True),
        "neighbour_sum_backward": (at_vertices, index, weight, True),
        "layer_norm_leaky_relu": (at_vertices, 0.1),
        "layer_norm_leaky_relu_backward": (at_vertices, at_vertices, 0.1),
        "instance_norm_leaky_relu": (*normed, 0.1),
        "instance_norm_leaky_relu_backward": (
            residual,
            volume,
            result,
            weight_of_norm,
            multiplier,
            mean,
            scale,
            0.1,
            True,
        ),
    }


PRIVATE = sorted(private_calls())


def _is_of_integers(tensor: torch.Tensor) -> bool:
    return not tensor.is_floating_point() and tensor.dtype != torch.bool


CHANGES = {
    "one less": lambda tensor, axis: tensor.narrow(axis, 0, tensor.shape[axis] - 1),
    "one more": lambda tensor, axis: torch.cat([tensor, tensor.narrow(axis, 0, 1)], axis),
    "none": lambda tensor, axis: tensor.narrow(axis, 0, 0),
    "an axis less": lambda tensor, axis: tensor.select(axis, 0),
    "an axis more": lambda tensor, axis: tensor.unsqueeze(axis),
    "other integers": lambda tensor, axis: tensor + 10**6 if _is_of_integers(tensor) else tensor,
    "negative integers": lambda tensor, axis: tensor - 10**6 if _is_of_integers(tensor) else tensor,
    "another dtype": lambda tensor, axis: tensor.double() if tensor.is_floating_point() else tensor.short(),
}


@needs_kernels
@settings(max_examples=400, deadline=None, derandomize=True)
@given(st.sampled_from(PRIVATE), st.integers(0, 4), st.integers(0, 4), st.sampled_from(sorted(CHANGES)))
def test_private_ops_read_nothing_that_is_not_there(name, argument, axis, change):
    """One argument changed: an error, or a result of the size that follows from what is left."""
    arguments = list(private_calls()[name])
    argument %= len(arguments)
    changed = arguments[argument]
    listed = isinstance(changed, list)
    changed = changed[0] if listed else changed
    if isinstance(changed, torch.Tensor):
        changed = CHANGES[change](changed, axis % changed.ndim)
        arguments[argument] = [changed] if listed else changed
    results = ()
    with contextlib.suppress(TypeError, ValueError, IndexError, RuntimeError):
        results = getattr(OPERATORS, name)(*arguments)
    for result in results if isinstance(results, tuple) else (results,):
        assert result.isfinite().all()  # so that nothing was read beside the arguments, nor left unwritten


@needs_kernels
@pytest.mark.parametrize("shape", [(), (4,), (4, 4), (4, 4, 4, 4), (0, 4, 4), (4, -1, 4), (2**24 + 1, 4, 4)])
@pytest.mark.parametrize("name", ["mesh2sdf", "voxelize", "splat"])
def test_private_ops_refuse_a_shape(name, shape):
    arguments = private_calls()[name][:2]
    with pytest.raises(ValueError, match="shape: wanted three integers from"):
        getattr(OPERATORS, name)(*arguments, shape)
