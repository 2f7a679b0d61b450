import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from implicitmeshnet.config import (
    REPOSITORY,
    Config,
    DrnConfig,
    IntensityStatistics,
    load_config,
    save_config,
    validate,
)
from implicitmeshnet.config_docs import field_meanings, manual
from implicitmeshnet.config_fields import Length, Name, Range, Rising, describe, permits
from implicitmeshnet.config_json import to_text
from implicitmeshnet.script import InputError, atomic_path

DRN = REPOSITORY / "configs_implicitmeshnet/drn.json"


def write(tmp_path, tree):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(tree))
    return path


def test_left_out_keys_take_their_defaults(tmp_path):
    config = load_config(write(tmp_path, {"training": {"epochs": 5}}))
    assert config.training.epochs == 5
    assert config.network == Config().network


def test_paths_in_json_are_relative_to_the_repository_and_overrides_to_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = load_config(write(tmp_path, {"data": {"dir": "data/a"}}), ["--training.run_dir=runs/b"])
    assert config.data.dir == str(REPOSITORY / "data/a")
    assert config.training.run_dir == str(tmp_path / "runs/b")


def test_a_saved_config_loads_to_the_same_and_names_no_absolute_path(tmp_path):
    config = load_config(write(tmp_path, {"snapshot": "snapshots/a.pt", "data": {"shape": [48, 32, 64]}}))
    save_config(config, tmp_path / "saved.json")
    assert load_config(tmp_path / "saved.json") == config
    assert str(REPOSITORY) not in (tmp_path / "saved.json").read_text()
    save_config(load_config(write(tmp_path, {"data": {"dir": "."}})), tmp_path / "saved.json")
    assert str(REPOSITORY) not in (tmp_path / "saved.json").read_text()


NUMBERS = st.one_of(st.floats(-1e30, 1e30), st.integers(-(10**30), 10**30))
NAMES = st.text("ab _[]{},:\"\\'/.\n\t\u00e9\udce9", max_size=20)  # the last is a byte that is no UTF-8
OPEN = {  # keys of which any value passes, or any positive one
    "data.dir": NAMES,
    "training.run_dir": NAMES,
    "snapshot": st.none() | NAMES,
    "loss.drn_config": st.none() | NAMES,
    "data.level_hu": NUMBERS,
    "data.window_hu": NUMBERS.map(abs).filter(bool),
    "loss.temperature": st.just(10**30),
    "loss.surface": NUMBERS.map(abs),
    "training.epochs": st.integers(1, 2**31 - 1),
    "data.percentiles": st.lists(st.floats(0, 100), min_size=2, max_size=2, unique=True).map(sorted),
    "network.template_centres": st.none() | st.lists(st.lists(NUMBERS, max_size=3), max_size=3),
    "network.stage_levels": st.lists(st.lists(st.sampled_from(["e0", "d1"]), min_size=1), min_size=3, max_size=3),
    "data.structures": st.dictionaries(
        st.text("Aä_9", min_size=1).filter(lambda name: name.strip("_")), st.just([]), min_size=1, max_size=3
    ),
    "training.augmentation": st.booleans(),
}


@given(st.fixed_dictionaries({}, optional=OPEN))
def test_whatever_is_accepted_comes_back_from_the_saved_config(values):
    tree = {}
    for index, name in enumerate(values.get("data.structures", ())):
        values["data.structures"][name] = [index + 1, index + 100]
    for key, value in values.items():
        section, _, name = key.rpartition(".")
        (tree.setdefault(section, {}) if section else tree)[name] = value
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "config.json"
        path.write_text(json.dumps(tree))
        config = load_config(path)
        save_config(config, path)
        assert load_config(path) == config
        assert json.loads(path.read_text())["data"]["level_hu"] == config.data.level_hu


@given(
    st.recursive(
        st.none() | st.booleans() | NUMBERS | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_the_layout_changes_no_value(value):
    assert json.loads(to_text(value)) == value


def test_a_list_of_plain_values_stands_on_one_line(tmp_path):
    config = load_config(write(tmp_path, {"data": {"dir": "runs/[a, b]"}}))
    save_config(config, tmp_path / "saved.json")
    lines = (tmp_path / "saved.json").read_text().splitlines()
    assert '    "dir": "runs/[a, b]",' in lines
    assert '    "shape": [128, 128, 128],' in lines
    assert '      ["e3", "e4"],' in lines


def test_a_config_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "config.json").write_text('{"training": {"epochs": 5}}', encoding="utf-8-sig")
    assert load_config(tmp_path / "config.json").training.epochs == 5


@pytest.mark.parametrize("key", ["data.dir", "data.cache_dir", "training.run_dir", "loss.drn_config", "snapshot"])
@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x/" * 50_000])
def test_a_name_that_no_file_can_have_is_one_sentence_that_names_the_key(tmp_path, key, name):
    section, _, last = key.rpartition(".")
    tree = {section: {last: name}} if section else {last: name}
    for content, overrides in ((tree, ()), ({}, [f"--{key}={json.dumps(name)}"])):
        with pytest.raises(InputError, match=rf"^{key}: wanted a path that a file can have, found") as error:
            load_config(write(tmp_path, content), overrides)
        assert len(str(error.value)) < 1000


LONG = "x" * 200_000
DIGITS = "9" * 4000


@pytest.mark.parametrize(
    "override",
    [
        LONG,
        f"--{LONG}=1",
        f"--training.{LONG}=1",
        f"--data.dir.{LONG}.a=1",
        f"--training.epochs={LONG}",
        f"--training.epochs={DIGITS}",
        f"--training.epochs={DIGITS * 50}",
        f"--training.learning_rate={DIGITS}",
        f"--data.shape={[1] * 100_000}",
        f"--data.region={LONG}",
        f'--data.structures={{"{LONG}": [1]}}',
        f'--data.structures={{"{LONG}": 1}}',
        f"--data.structures={json.dumps({'a': list(range(60_000))})}",
        f"--network.encoder_channels={[1] * 100_000}",
        f"--network.stage_channels={[10**18] * 3}",
        f"--network.stage_levels={json.dumps([[LONG]] * 3)}",
        f'--data.structures={{"{LONG}": [1], "{LONG}": [1]}}',
        "--data.shape=" + "[" * 200_000,
        "--data.shape=" + "[" * 950 + "]" * 950,
        "--a" + ".a" * 100_000 + "=1",
        "--data.structures" + ".a" * 100_000 + "=1",
    ],
)
def test_whatever_a_message_quotes_it_stays_short(tmp_path, override):
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, {}), [override])
    assert len(str(error.value)) < 1500
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    "override",
    [
        "--network.subvoxels=" + DIGITS,
        "--network.channels=" + str([16] * 20_000),
        f"--network.channels={[2**40] * 4}",
        "--network.groups=" + DIGITS,
    ],
)
def test_a_drn_of_any_size_is_refused_in_a_short_sentence(override):
    with pytest.raises(InputError) as error:
        load_config(DRN, [override], DrnConfig)
    assert len(str(error.value)) < 1000


def integers(kind):
    """(kind, section, key) of every integer, or tuple of them, in a config of a kind."""
    for section, values in dataclasses.asdict(kind()).items():
        for key, value in values.items() if isinstance(values, dict) else ():
            numbers = value if isinstance(value, tuple) else (value,)
            if numbers and all(type(number) is int for number in numbers):
                yield kind, section, key


@pytest.mark.parametrize(("kind", "section", "key"), [*integers(Config), *integers(DrnConfig)])
def test_every_integer_has_an_upper_bound(kind, section, key):
    """A width of 2^40 would end in torch's words, or with all memory taken."""
    config = kind()
    value = getattr(getattr(config, section), key)
    setattr(getattr(config, section), key, (2**40,) * len(value) if isinstance(value, tuple) else 2**40)
    with pytest.raises(InputError, match=rf"{section}\.{key}: wanted"):
        validate(config)


def test_overrides_parse_json_and_bare_words(tmp_path):
    path = write(tmp_path, {})
    overrides = ["--data.shape=[64,64,32]", "--data.intensity=percentile", "--training.learning_rate=1"]
    config = load_config(path, overrides)
    assert (config.data.shape, config.data.intensity) == ((64, 64, 32), "percentile")
    assert config.training.learning_rate == 1.0


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--foo=1", "unknown key foo"),
        ("--training.epoch=1", "unknown key training.epoch,"),
        ("--data.shape=64", "data.shape: wanted"),
        ("--data.shape=[60,64,64]", "data.shape: wanted multiples of 16 from 6 to 4095"),
        ("--network.flat_levels=[0,0,5]", "network.flat_levels: wanted numbers from 0 to 4"),
        ("--network.flat_levels=[0,1]", "network.flat_levels: wanted 3 numbers"),
        ("--training.seed=abc", 'training.seed: wanted int, found "abc"'),
        ("--training.epochs=0", "training.epochs: wanted 1 to 2^31 - 1, found 0"),
        ("--training.augmentation=1", "training.augmentation: wanted bool, found 1"),
        ('--data.structures={"a":[1],"b":[1]}', "distinct label values"),
        ('--data.structures={"a":[70000]}', "1 or more label values, each 1 to 32767"),
        ("--data.shape=[16,16,16]", "not all 16"),
        ("--data.shape=[32,64,64]", "another first number than 32"),
        ("--network.encoder_channels=[]", "network."),
        ("--training.seed=-1", "training.seed: wanted 0 to 2^32 - 1, found -1"),
        ('--data.structures={"a/b":[1]}', "letters, digits and underscores"),
        ('--network.stage_levels=[["e9"],["e0"],["e0"]]', "network.stage_levels: wanted names among"),
        ('--data.encloses={"LV":["Myo"]}', "data.encloses: wanted structures of data.structures"),
        ('--data.encloses={"LV":["LV"]}', "data.encloses: wanted"),
        ('--data.encloses={"LV":["LA"],"LA":["LV"]}', "each enclosing distinct others that enclose none"),
        ('--data.encloses={"LV":["LA","LA"]}', "each enclosing distinct others"),
        ("--data.region=middle", "data.region: wanted 'centre' or 'found', found middle"),
        ("--data.fold=5", "data.fold: wanted null or a fold from 0 to 4, as data.folds says, found 5"),
        ("--data.folds=1", "data.folds: wanted 2 to 2^31 - 1, found 1"),
        ("--data.ignore=[7,421]", "data.ignore: wanted label values that mean no structure, found [7, 421]"),
        ("--data.ignore=[0]", "data.ignore: wanted each 1 to 32767, found [0]"),
        ("--data.intensity=[]", "data.intensity: wanted 'window' or 'percentile', or 1 to 99 rules, each 'window' or"),
        ('--data.intensity=["mr"]', "each 'window' or 'percentile', found ['mr']"),
        ('--data.intensity_statistics=[{"cases":3}]', "data.intensity_statistics[0].mean: wanted 9 numbers, found ()"),
        ("--data.overview_spacing_mm=0", "data.overview_spacing_mm: wanted 0.001 to 1000"),
        ("--network.localiser_channels=[8]", "network.localiser_channels: wanted 2 to 6 widths, each 1 to 4096"),
        ("--network.stage_channels=[8]", "one width for each entry of stage_levels"),
        ("--data.dir.x=1", "data.dir: wanted str"),
        ("--data.region=3", "data.region: wanted 'centre' or 'found', found 3"),
        ('--data.intensity_statistics={"cases":3}', "data.intensity_statistics.mean: wanted 9 numbers, found ()"),
        ("--training.learning_rate_end=0.5", "training.learning_rate_end: wanted a number from 0 to learning_rate"),
        ("stray", "wanted an override of the form"),
        ("--data.spacing_mm=NaN", "data.spacing_mm: wanted float, found NaN"),
        ("--training.learning_rate=Infinity", "training.learning_rate"),
    ],
)
def test_a_bad_override_is_one_sentence(tmp_path, override, sentence):
    with pytest.raises(InputError) as error:
        load_config(write(tmp_path, {}), [override])
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def statistics_of(value):
    return {"cases": 2, "mean": [value] * 9, "covariance": [[0.0] * 9] * 9}


def test_flat_levels_need_fewer_voxels_along_their_axis(tmp_path):
    tree = {"data": {"shape": [48, 48, 8]}}  # 5 levels
    with pytest.raises(InputError, match=r"data\.shape: wanted multiples of 16 from 6"):
        load_config(write(tmp_path, tree))
    tree["network"] = {"flat_levels": [0, 0, 1]}
    assert load_config(write(tmp_path, tree)).network.flat_levels == (0, 0, 1)
    tree["data"]["shape"] = [16, 16, 8]
    with pytest.raises(InputError, match=r"data\.shape: wanted multiples of 16 x 16 x 8 from 6 to 4095, not all"):
        load_config(write(tmp_path, tree))


def test_several_channels_have_a_rule_and_statistics_each(tmp_path):
    tree = {"intensity": ["window", "percentile"], "intensity_statistics": [statistics_of(0.1), statistics_of(0.2)]}
    config = load_config(write(tmp_path, {"data": tree}))
    assert config.data.intensity_rules == ["window", "percentile"]
    assert [statistics.mean[0] for statistics in config.data.channel_statistics] == [0.1, 0.2]
    save_config(config, tmp_path / "saved.json")
    assert load_config(tmp_path / "saved.json") == config
    tree["intensity_statistics"].pop()
    with pytest.raises(InputError, match="intensity_statistics: wanted null, or an object for each rule of"):
        load_config(write(tmp_path, {"data": tree}))


def test_one_channel_has_one_rule_and_the_statistics_that_older_configs_hold(tmp_path):
    tree = {"intensity": "percentile", "intensity_statistics": statistics_of(0.1)}
    config = load_config(write(tmp_path, {"data": tree}))
    assert (config.data.channels, config.data.intensity_rules) == (1, ["percentile"])
    assert config.data.channel_statistics == [config.data.intensity_statistics]
    assert Config().data.channel_statistics == []


def test_missing_and_malformed_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json: cannot be read"):
        load_config(tmp_path / "none.json")
    broken = tmp_path / "broken.json"
    broken.write_text('{"data": {}, "data": {}}')
    with pytest.raises(InputError, match="the key data stands twice"):
        load_config(broken)
    broken.write_text("{")
    with pytest.raises(InputError, match=r"broken\.json: wanted a config in JSON"):
        load_config(broken)


def test_the_shipped_configs_load_and_hold_repository_relative_paths_only():
    shipped = sorted((REPOSITORY / "configs_implicitmeshnet").glob("*.json"))
    assert shipped
    for path in shipped:
        validate(load_config(path, kind=DrnConfig if path.stem.startswith("drn") else Config))
        tree = json.loads(path.read_text())
        names = tree.get("data", {}).get("dir"), tree["training"]["run_dir"], tree.get("snapshot")
        assert not any(Path(name or "").is_absolute() for name in names)


@pytest.mark.parametrize(("stem", "structure"), [("2025-03-31_13-45-41", "LV"), ("2025-03-30_10-03-29", "LA")])
def test_the_papers_configs_differ_from_the_defaults_in_nothing_but_names(stem, structure):
    config = load_config(REPOSITORY / f"configs_implicitmeshnet/{stem}.json")
    assert list(config.data.structures) == [structure]
    assert config.loss.route == "deep"
    assert config.loss.drn_config == f"{load_config(DRN, kind=DrnConfig).training.run_dir}/config.json"
    assert config.network.template == "centred"
    config.data.structures, config.data.dir = Config().data.structures, Config().data.dir
    config.loss.route, config.loss.drn_config, config.network.template = "exact", None, "mean"
    config.training.run_dir = Config().training.run_dir
    config.data.intensity_statistics = None  # of what the shipped weights have seen
    assert (config.data, config.network, config.loss, config.training) == (
        Config().data,
        Config().network,
        Config().loss,
        Config().training,
    )


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("--network.shape=[64, 60, 64]", r"network\.shape: wanted multiples of 8 from 24 to 1024 for 4 stages"),
        ("--network.channels=[32, 32, 32, 20]", r"network\.channels: wanted .* a multiple of network\.groups, 16"),
        ("--network.blocks=[1, 1]", r"network\.blocks: wanted 1 to 100 for each of 4 stages"),
        ("--network.subvoxels=0", r"network\.subvoxels: wanted 1 to 8"),
        ("--network.groups=0", r"network\.groups: wanted 1 to 65535, found 0"),
        (
            "--shapes.tubes=0.9",
            r"shapes\.ellipsoids: wanted shares of ellipsoids, tubes and cups that sum to at most 1",
        ),
        (
            "--shapes.cup_wall=[0.2, 1.0]",
            r"shapes\.cup_wall: wanted two rising or equal numbers, each a number above 0 and below 1",
        ),
        ("--network.channels=[]", r"network\.channels: wanted 1 to 9 widths, each 1 to 4096"),
        ("--network.stages=3", r"unknown key network\.stages"),
        ("--shapes.radius=[0.8, 0.2]", r"shapes\.radius: wanted two rising or equal numbers"),
        ("--shapes.noise=-1", r"shapes\.noise: wanted a number of at least 0 and below 1"),
        ("--training.batch_size=0", r"training\.batch_size: wanted 1 to"),
        ("--data.dir=a", r"unknown key data"),
    ],
)
def test_a_drn_config_that_does_not_fit_is_refused(override, sentence):
    with pytest.raises(InputError, match=sentence):
        load_config(DRN, [override], DrnConfig)


def test_the_deep_route_wants_a_network(tmp_path):
    with pytest.raises(InputError, match=r"loss\.drn_config: wanted the config of a pretrained"):
        load_config(write(tmp_path, {"loss": {"route": "deep"}}))
    with pytest.raises(InputError, match=r"loss\.route: wanted 'exact' or 'deep', found fast"):
        load_config(write(tmp_path, {"loss": {"route": "fast"}}))


@pytest.mark.parametrize(
    ("limit", "within", "outside", "text"),
    [
        (Range(0, 1), [0, 0.5, 1], [-1e-9, 1.1, float("nan")], "0 to 1"),
        (Range(1, 2**31 - 1), [1, 2**31 - 1], [0, 2**31], "1 to 2^31 - 1"),
        (Range(above=0), [1e-300, 1e30], [0, -1], "a number above 0"),
        (Range(low=0, below=1), [0, 0.999], [-0.1, 1], "a number of at least 0 and below 1"),
        (Range(above=0, high=0.5), [0.1, 0.5], [0, 0.6], "a number above 0 and at most 0.5"),
        (Length(2, 3, "widths"), [(1, 1), (1, 1, 1)], [(), (1,), (1,) * 4], "2 to 3 widths"),
        (Length(1, items="widths"), [(1,) * 99], [()], "1 or more widths"),
        (Length(9, 9, "rows"), [(1,) * 9], [(1,) * 8, (1,) * 10], "9 rows"),
        (Rising(), [(0, 1), (1, 1)], [(1, 0)], "two rising or equal numbers"),
        (Rising(strict=True), [(0, 1)], [(1, 1), (1, 0)], "two rising numbers"),
        (Name(3), ["a_1", "Ä", "_a"], ["", "_", "a/b", "abcd"], "names of at most 3 letters, digits and underscores"),
    ],
)
def test_a_limit_permits_what_it_says(limit, within, outside, text):
    assert all(limit.permits(value) for value in within)
    assert not any(limit.permits(value) for value in outside)
    assert limit.text() == text


def test_limits_of_items_are_checked_and_described_with_those_of_the_whole():
    small = Annotated[int, Range(0, 9)]
    kind = dict[Annotated[str, Name(5)], Annotated[tuple[small, ...], Length(1, 2, "digits")]]
    assert describe(kind) == "names of at most 5 letters, digits and underscores, for each 1 to 2 digits, each 0 to 9"
    assert permits({"a": (1, 2), "b": (3,)}, kind)
    for wrong in ({"a b": (1,)}, {"a": ()}, {"a": (1, 10)}):
        assert not permits(wrong, kind)
    choice = list[Literal["a", "b"]]
    assert describe(choice) == "each 'a' or 'b'"
    assert permits(["b"], choice)
    assert not permits(["b", "c"], choice)


def sections(kind):
    """The dataclasses that a config of a kind is made of."""
    return [type(value) for value in vars(kind()).values() if dataclasses.is_dataclass(value)]


@pytest.mark.parametrize("section", [IntensityStatistics, *sections(Config), *sections(DrnConfig)])
def test_every_field_says_what_it_means(section):
    meanings = field_meanings(section)
    assert set(meanings) == {field.name for field in dataclasses.fields(section)}
    assert all(meaning.endswith(".") for meaning in meanings.values())


def test_the_manual_of_all_keys_is_fresh():
    committed = (REPOSITORY / "docs/configs.md").read_text(encoding="utf-8")
    assert committed == manual(), "run python -m implicitmeshnet.config_docs > docs/configs.md"


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file.json"
    path.write_text("old")

    def write_half():
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_spacing_is_one_number_or_three(tmp_path):
    path = tmp_path / "config.json"
    path.write_text("{}")
    assert load_config(path, ["--data.spacing_mm=2"]).data.spacing_mm == 2.0
    assert load_config(path, ["--data.spacing_mm=[1.5, 1.5, 5]"]).data.spacing_mm == (1.5, 1.5, 5.0)
    for value in ("[1, 1]", "[1, 1, 0]", "[]", '"1"', "null", "[1, 1, null]", "[[1, 1, 1]]", "true"):
        with pytest.raises(InputError, match=r"data\.spacing_mm\S*: wanted"):
            load_config(path, [f"--data.spacing_mm={value}"])


@pytest.mark.parametrize("other", [{"augmentation": False}, {"appearance": "random"}])
def test_any_orientation_needs_the_augmentation_that_draws_it(tmp_path, other):
    tree = {"data": {"intensity": "percentile"}, "training": {"orientation": "any"}}
    assert load_config(write(tmp_path, tree)).training.orientation == "any"
    tree["training"] |= other
    with pytest.raises(InputError, match=r"training\.orientation: wanted header"):
        load_config(write(tmp_path, tree))
