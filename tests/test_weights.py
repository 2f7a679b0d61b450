"""Checkpoints as files: what fits is loaded, whatever else is one sentence that names the file."""

import pickle
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from implicitmeshnet.config import Config, DataConfig, NetworkConfig, save_config
from implicitmeshnet.models.mesh_net import build_network
from implicitmeshnet.models.weights import (
    load_checkpoint,
    load_network,
    misfit,
    read_start,
    restore,
    save_checkpoint,
    save_snapshot,
    start_from,
)
from implicitmeshnet.script import InputError


def small_config(region: str = "centre") -> Config:
    network = NetworkConfig(
        encoder_channels=(4, 8),
        decoder_channels=(4,),
        localiser_channels=(4, 8),
        template="centred",
        template_subdivisions=0,
        stage_levels=(("e1",),),
        stage_channels=(4,),
    )
    return Config(DataConfig(structures={"LV": [500]}, region=region, shape=(8, 8, 8)), network)


@pytest.fixture(scope="module")
def weights():
    return build_network(small_config()).state_dict()


def quantised(tensor):
    return torch.quantize_per_tensor(tensor, 0.1, 0, torch.qint8)


STRANGE = {
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "csr": lambda tensor: tensor.flatten(1).to_sparse_csr(),
    "quantised": quantised,
    "nested": lambda tensor: torch.nested.nested_tensor(list(tensor)),
    "complex": lambda tensor: tensor.to(torch.complex64),
    "float8": lambda tensor: tensor.to(torch.float8_e4m3fn),
    "integer": lambda tensor: tensor.int(),
    "bool": lambda tensor: tensor > 0,
    "not finite": lambda tensor: tensor / 0,
    "list": lambda tensor: tensor.tolist(),
    "number": lambda tensor: 1.0,
    "none": lambda tensor: None,
    "another shape": lambda tensor: tensor[:1],
    "transposed": lambda tensor: tensor[None],
}


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", STRANGE)
def test_a_snapshot_of_other_than_plain_real_numbers_is_one_sentence(weights, tmp_path, kind):
    path, name = tmp_path / "best.pt", next(iter(weights))
    torch.save({"network": weights | {name: STRANGE[kind](weights[name])}}, path)
    with pytest.raises(InputError, match=r"best\.pt: ") as error:
        load_network(small_config(), path)
    assert "does not fit the config: wanted" in str(error.value) or "unreadable" in str(error.value)
    assert len(str(error.value)) < 800


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_weights_in_any_real_precision_are_loaded(weights, tmp_path, dtype):
    torch.save({"network": {name: value.to(dtype) for name, value in weights.items()}}, tmp_path / "best.pt")
    loaded = load_network(small_config(), tmp_path / "best.pt").state_dict()
    assert all(torch.equal(loaded[name], value.to(dtype).float()) for name, value in weights.items())


@pytest.mark.parametrize(
    "state", [None, 1, [], {}, {"network": None}, {"network": []}, {"network": torch.zeros(1)}, torch.zeros(3)], ids=str
)
def test_a_file_of_other_things_is_no_snapshot(tmp_path, state):
    torch.save(state, tmp_path / "best.pt")
    with pytest.raises(InputError, match=r"best\.pt: wanted a snapshot with the entry 'network', found none"):
        load_network(small_config(), tmp_path / "best.pt")


def test_weights_of_a_localiser_that_is_not_needed_are_no_fault(tmp_path):
    found = build_network(small_config("found"))
    save_snapshot(tmp_path / "best.pt", found)
    loaded = load_network(small_config("centre"), tmp_path / "best.pt")
    assert loaded.localiser is None
    assert all(
        torch.equal(value, found.state_dict()[name].half().float()) for name, value in loaded.state_dict().items()
    )
    state = load_checkpoint(tmp_path / "best.pt")
    for name in ("unet.extra", "localised", 7):
        torch.save({"network": state["network"] | {name: torch.zeros(1)}}, tmp_path / "more.pt")
        with pytest.raises(InputError, match=rf"more\.pt: does not fit the config: wanted {name} of shape None"):
            load_network(small_config("centre"), tmp_path / "more.pt")


def test_weights_of_a_localiser_that_is_needed_must_be_there(tmp_path):
    save_snapshot(tmp_path / "best.pt", build_network(small_config("centre")))
    with pytest.raises(InputError, match=r"wanted localiser\..* of shape .*, found None"):
        load_network(small_config("found"), tmp_path / "best.pt")


def test_a_snapshot_holds_every_real_number_in_half_precision(tmp_path):
    save_snapshot(tmp_path / "best.pt", build_network(small_config()))
    saved = load_checkpoint(tmp_path / "best.pt")["network"]
    assert {value.dtype for value in saved.values() if value.is_floating_point()} == {torch.float16}


def test_the_same_state_gives_the_same_bytes_under_any_name(weights, tmp_path):
    for name in ("best.pt", "other.pt"):
        save_checkpoint(tmp_path / name, {"network": weights})
    assert (tmp_path / "best.pt").read_bytes() == (tmp_path / "other.pt").read_bytes()


def test_a_folder_in_place_of_a_checkpoint_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"cannot be read as a checkpoint \(Is a directory\)"):
        load_checkpoint(tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_file_is_one_sentence(weights, tmp_path_factory, data):
    """Bytes changed, or the end missing: what still loads is checked, what does not is named."""
    path = tmp_path_factory.getbasetemp() / "damaged.pt"
    save_checkpoint(path, {"network": weights})
    content = bytearray(path.read_bytes())
    names = content.index(b"network")  # where the pickled part begins
    for position in data.draw(
        st.lists(st.one_of(st.integers(0, len(content) - 1), st.integers(0, names + 4000)), min_size=1, max_size=4)
    ):
        content[position] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.sampled_from([len(content), len(content) // 2]))])
    try:
        load_network(small_config(), path)
    except InputError as error:
        assert str(error).startswith(f"{path}: ")  # noqa: PT017


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"not a checkpoint", pickle.dumps({"network": 1}), b"\x80\x02.", b"\x80\x02" + b"(" * 100_000],
)
def test_a_file_that_is_no_checkpoint_is_unreadable(tmp_path, content):
    (tmp_path / "best.pt").write_bytes(content)
    with pytest.raises(InputError, match=r"best\.pt: wanted a (checkpoint|snapshot)"):
        load_network(small_config(), tmp_path / "best.pt")


def trained():
    """A network and its optimiser after two steps."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), 0.1, weight_decay=0.01)
    for _ in range(2):
        network(torch.ones(1, 3)).sum().backward()
        optimizer.step()
    return network, optimizer


def test_an_optimiser_is_restored_whatever_settings_the_file_names():
    _, optimizer = trained()
    state = optimizer.state_dict()
    state["param_groups"] = [{"params": "nonsense", "lr": "fast"}]
    _, other = trained()
    other.state.clear()
    restore(other, state)
    assert other.param_groups[0]["weight_decay"] == 0.01
    for mine, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


MOMENTS = {
    "none": lambda state: None,
    "a list": lambda state: [state],
    "no state": lambda state: {},
    "a list of states": lambda state: {"state": []},
    "another number": lambda state: {"state": {2: state["state"][0]}},
    "a negative number": lambda state: {"state": {-1: state["state"][0]}},
    "a name": lambda state: {"state": {"weight": state["state"][0]}},
    "a tensor's number": lambda state: {"state": {torch.zeros(2): state["state"][0]}},
    "no means": lambda state: {"state": {0: None}},
    "a mean missing": lambda state: {"state": {0: {"step": torch.ones(()), "exp_avg": torch.zeros(1, 3)}}},
    "a mean too many": lambda state: {"state": {0: state["state"][0] | {"max_exp_avg_sq": torch.zeros(1, 3)}}},
    "another shape": lambda state: {"state": {1: state["state"][0]}},
    "no step": lambda state: {"state": {0: state["state"][0] | {"step": torch.zeros(())}}},
    "a step that is no tensor": lambda state: {"state": {0: state["state"][0] | {"step": 2}}},
    "negative squares": lambda state: {"state": {0: state["state"][0] | {"exp_avg_sq": -torch.ones(2, 3)}}},
    "a mean that is not finite": lambda state: {"state": {0: state["state"][0] | {"exp_avg": torch.ones(2, 3) / 0}}},
    "a sparse mean": lambda state: {"state": {0: state["state"][0] | {"exp_avg": torch.ones(2, 3).to_sparse()}}},
    "a meta mean": lambda state: {"state": {0: state["state"][0] | {"exp_avg": torch.ones(2, 3, device="meta")}}},
}


@pytest.mark.parametrize("kind", MOMENTS)
def test_an_optimisers_state_that_does_not_fit_is_refused_in_words(kind):
    _, optimizer = trained()
    with pytest.raises(ValueError, match="wanted"):
        restore(optimizer, MOMENTS[kind](optimizer.state_dict()))


def test_a_fit_is_no_misfit(weights):
    assert misfit(dict(weights), weights) == ""


def with_template(centres, radii):
    config = small_config()
    config.network = replace(config.network, template="mean", template_centres=centres, template_radii=radii)
    return config


CENTRES = ((0.1, 0.0, -0.25),)
RADII = ((0.3, 1 / 3, 0.5),)


def test_a_snapshot_brings_the_template_to_a_config_without_one(tmp_path):
    config = with_template(CENTRES, RADII)
    save_snapshot(tmp_path / "best.pt", build_network(config), config)
    wanted = build_network(config).decoder.template
    bare = with_template(None, None)
    for asked in (config, bare):
        assert torch.equal(load_network(asked, tmp_path / "best.pt").decoder.template, wanted)
    assert bare.network.template_centres is None  # what the caller holds stays as it was


def test_a_config_of_another_template_does_not_fit_the_snapshot(tmp_path):
    config = with_template(CENTRES, RADII)
    save_snapshot(tmp_path / "best.pt", build_network(config), config)
    other = with_template(CENTRES, ((0.3, 0.3, 0.3),))
    with pytest.raises(InputError, match=r"best\.pt: does not fit the config: wanted its network\.template_radii"):
        load_network(other, tmp_path / "best.pt")


def test_a_snapshot_without_template_needs_the_config_that_has_it(tmp_path):
    config = with_template(CENTRES, RADII)
    save_snapshot(tmp_path / "best.pt", build_network(config))
    loaded = load_network(config, tmp_path / "best.pt")
    assert torch.equal(loaded.decoder.template, build_network(config).decoder.template)
    with pytest.raises(InputError, match=r"network\.template_centres: wanted three numbers .*, found None"):
        load_network(with_template(None, None), tmp_path / "best.pt")


@pytest.mark.parametrize(
    "saved",
    [
        7,
        "mean",
        {"template_centres": CENTRES},
        {"template_centres": CENTRES, "template_radii": RADII * 2},
        {"template_centres": CENTRES, "template_radii": torch.zeros(1, 3)},
        {"template_centres": CENTRES, "template_radii": ((0.3, 0.3),)},
        {"template_centres": CENTRES, "template_radii": ((0.3, "x", 0.3),)},
        {"template_centres": CENTRES, "template_radii": ((0.3, float("nan"), 0.3),)},
    ],
    ids=str,
)
def test_a_snapshots_strange_template_is_one_sentence(tmp_path, saved):
    network = build_network(with_template(CENTRES, RADII))
    torch.save({"network": network.state_dict(), "template": saved}, tmp_path / "best.pt")
    with pytest.raises(InputError, match=r"wanted three numbers for each of 1 structures") as error:
        load_network(with_template(None, None), tmp_path / "best.pt")
    assert len(str(error.value)) < 800


def network_of(*names, width=8, seed=0, deep_supervision=False):
    torch.manual_seed(seed)
    config = small_config()
    config.data.structures = {name: [number] for number, name in enumerate(names, 1)}
    config.network.stage_channels = (width,)
    config.network.deep_supervision = deep_supervision
    network = build_network(config)
    for value in network.parameters():
        torch.nn.init.normal_(value)
    return network, config


def test_a_start_gives_each_structure_its_own_weights_by_name(tmp_path):
    source, config = network_of("LV", "RV", "LA", deep_supervision=True)
    save_snapshot(tmp_path / "best.pt", source, config)
    target, _ = network_of("LA", "spleen", "LV", seed=1, deep_supervision=True)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    left = start_from(target, read_start(tmp_path / "best.pt"), ["LA", "spleen", "LV"])
    assert left == []
    given = {name: value.half().float() for name, value in source.state_dict().items()}
    after = target.state_dict()
    for name, value in after.items():
        if name.startswith("decoder."):
            assert torch.equal(value[0], given[name][2])
            assert torch.equal(value[1], before[name][1])
            assert torch.equal(value[2], given[name][0])
        elif "head" in name:
            assert torch.equal(value[[0, 1, 3]], given[name][[0, 3, 1]])
            assert torch.equal(value[2], before[name][2])
        else:
            assert torch.equal(value, given[name])


def test_weights_that_do_not_fit_are_left_and_named(tmp_path):
    source, config = network_of("LV", width=8)
    save_snapshot(tmp_path / "best.pt", source, config)
    target, _ = network_of("LV", width=4, seed=1)
    before = {name: value.clone() for name, value in target.state_dict().items()}
    left = start_from(target, read_start(tmp_path / "best.pt"), ["LV"])
    assert left
    assert all(name.startswith("decoder.stages.0.") for name in left)
    assert all(torch.equal(target.state_dict()[name], before[name]) for name in left)
    assert torch.equal(target.unet.head.weight, source.unet.head.weight.half().float())


def test_a_config_gives_the_names_of_an_old_snapshots_structures(tmp_path):
    source, config = network_of("LV", "LA")
    save_snapshot(tmp_path / "old.pt", source)
    config.snapshot = str(tmp_path / "old.pt")
    save_config(config, tmp_path / "config.json")
    assert read_start(tmp_path / "old.pt").structures is None
    start = read_start(tmp_path / "config.json")
    assert start.structures == ["LV", "LA"]
    target, _ = network_of("LA", seed=1)
    assert start_from(target, start, ["LA"]) == []
    name = "decoder.stages.0.input.weight"
    assert torch.equal(target.state_dict()[name][0], source.state_dict()[name][1].half().float())


def test_a_start_without_weights_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"none\.pt: wanted trained weights, found no such file"):
        read_start(tmp_path / "none.pt")
