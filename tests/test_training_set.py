"""The samples of a training: what they hold, what of them is kept on disk, and what spoils or outlives that."""

import os
import threading
from dataclasses import fields, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from volumes import write_boxes

from implicitmeshnet.config import Config, DataConfig
from implicitmeshnet.data import cache, training_set
from implicitmeshnet.data.cache import entry_path, read_entry
from implicitmeshnet.data.dataset import Case, training_sample
from implicitmeshnet.data.ellipsoids import template_statistics
from implicitmeshnet.data.training_set import TrainingSet, check_cases, prepare
from implicitmeshnet.script import HOST, InputError

CONFIG = DataConfig(structures={"LV": [500], "LA": [420, 421]}, shape=(16, 16, 16), spacing_mm=1.7)
MARGIN = 2


def write_doubtful(folder, name="doubtful"):
    """A case whose headers say nothing of where it lies, which is worth a warning."""
    case = Case(name, folder / f"{name}_image.nii", folder / f"{name}_label.nii")
    for path, value in ((case.image, -50), (case.label, 500)):
        image = nib.Nifti1Image(np.full((20, 20, 20), value, np.int16), None)
        image.header.set_zooms((2, 2, 2))
        nib.save(image, path)
    return case


@pytest.fixture
def no_reading(monkeypatch):
    """From here on no case may be read."""

    def forbid():
        def read(case, *_):
            raise AssertionError(f"{case.name} is read again")

        monkeypatch.setattr(training_set, "training_sample", read)
        monkeypatch.setattr(training_set, "read_labelled", read)

    return forbid


def entries(folder):
    return sorted(path.name for path in folder.iterdir())


def same_volume(volume, other):
    assert torch.equal(volume.image, other.image)
    assert torch.equal(volume.label, other.label)
    assert volume.grid.shape == other.grid.shape
    np.testing.assert_array_equal(volume.grid.affine, other.grid.affine)


def same(sample, other):
    same_volume(sample, other)
    assert (sample.overview is None) == (other.overview is None)
    if sample.overview:
        same_volume(sample.overview, other.overview)


@pytest.mark.parametrize("region", ["centre", "found"])
def test_a_sample_is_that_of_its_case_in_half_precision_before_and_after_it_lies_on_disk(tmp_path, region, no_reading):
    config = replace(CONFIG, region=region)
    cases = [write_boxes(tmp_path, "a"), write_boxes(tmp_path, "b", values=(500,))]
    alone = [training_sample(case, config, MARGIN) for case in cases]
    first = TrainingSet(cases, config, MARGIN, tmp_path / "cache")
    drawn = list(first)
    no_reading()
    second = TrainingSet(cases, config, MARGIN, tmp_path / "cache")
    assert len(first) == len(second) == 2
    for case, made, found in zip(alone, drawn, second, strict=True):
        assert made.image.dtype == torch.float16
        same(made, replace(case, image=case.image.half()))
        same(found, made)
        for field in fields(case.facts):
            np.testing.assert_array_equal(getattr(found.facts, field.name), getattr(case.facts, field.name))
    assert second.intensity_statistics == first.intensity_statistics
    assert second.intensity_statistics.cases == 2
    statistics = template_statistics(second.ellipsoids, config)
    np.testing.assert_array_equal(statistics, template_statistics([case.facts.ellipsoids for case in alone], config))


def test_facts_of_a_sample_are_those_of_its_label(tmp_path):
    case = write_boxes(tmp_path)
    config = replace(CONFIG, shape=(8, 8, 8))  # cuts the boxes
    alone, wide = training_sample(case, config), training_sample(case, config, MARGIN)
    assert wide.facts.voxels.tolist() == [int((wide.label == 1).sum()), int((wide.label == 2).sum())]
    assert alone.facts.voxels.sum() < wide.facts.voxels.sum()
    np.testing.assert_allclose(alone.facts.ellipsoids, wide.facts.ellipsoids)


def test_a_structure_of_no_case_is_refused(tmp_path):
    case = write_boxes(tmp_path, values=(500,))
    with pytest.raises(InputError, match=r"data\.structures: wanted LA in at least one of 1 cases, found it in none"):
        TrainingSet([case], CONFIG, 0, tmp_path / "cache")


def test_what_the_box_cuts_is_said_in_a_line_a_structure(tmp_path, capsys):
    cases = [write_boxes(tmp_path, "a"), write_boxes(tmp_path, "b")]
    TrainingSet(cases, CONFIG, 0, tmp_path / "cache")
    assert capsys.readouterr().out == ""
    narrow = replace(CONFIG, shape=(16, 14, 16), spacing_mm=1.0)
    TrainingSet(cases, narrow, 0, tmp_path / "cache")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["LV", "LA"]
    assert all("outside the box in 2 of 2 cases" in line for line in lines)


def test_warnings_are_said_by_each_start_and_once(tmp_path, capsys):
    case = write_doubtful(tmp_path)
    config = DataConfig(structures={"LV": [500]}, shape=(16, 16, 16), spacing_mm=2.6)
    told = []
    for _ in range(2):
        prepare([case], config, 0, tmp_path / "cache")
        TrainingSet([case], config, 0, tmp_path / "cache")
        told.append([line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")])
    assert len(told[0]) == 1
    assert told[1] == told[0]


def test_validation_cases_are_checked_before_they_are_needed_and_read_once(tmp_path, capsys, no_reading):
    good, bad, doubtful = write_boxes(tmp_path, "good"), write_boxes(tmp_path, "bad", (600,)), write_doubtful(tmp_path)
    for _ in range(2):
        with pytest.raises(InputError, match=r"bad_label\.nii\.gz: wanted some of the label values"):
            check_cases([good, bad], CONFIG, tmp_path / "cache")
    labelled = check_cases([good, doubtful], CONFIG, tmp_path / "cache")
    assert "warning: " in capsys.readouterr().err
    assert labelled == {"LV", "LA"}
    no_reading()
    assert check_cases([good, doubtful], CONFIG, tmp_path / "cache") == labelled
    assert "warning: " in capsys.readouterr().err
    assert len(entries(tmp_path / "cache")) == 2


def test_a_changed_file_is_read_again(tmp_path):
    case = write_boxes(tmp_path)
    before = TrainingSet([case], CONFIG, 0, tmp_path / "cache")[0]
    for path in (case.image, case.label):
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
        prepare([case], CONFIG, 0, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 3
    write_boxes(tmp_path, values=(500,))
    prepare([case], CONFIG, 0, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 4
    after = TrainingSet([case], replace(CONFIG, structures={"LV": [500]}), 0, tmp_path / "cache")[0]
    assert (before.label == 2).any() and not (after.label == 2).any()


def test_a_case_of_the_same_name_elsewhere_is_another(tmp_path):
    cases = [write_boxes(tmp_path / "1"), write_boxes(tmp_path / "2")]
    prepare(cases, CONFIG, 0, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 2


def test_every_setting_counts_but_those_that_change_no_case(tmp_path):
    def path(config, kind="sample"):
        return entry_path(tmp_path, "a", (), config, kind)

    changed = {
        "structures": {"LV": [500]},
        "encloses": {"LV": ["LA"]},
        "ignore": [7],
        "outside_view": "ignored",
        "region": "found",
        "overview_spacing_mm": 4.0,
        "shape": (16, 16, 24),
        "spacing_mm": 1.0,
        "intensity": "percentile",
        "window_hu": 900.0,
        "level_hu": 100.0,
        "percentiles": (1.0, 99.0),
    }
    names = {field.name for field in fields(DataConfig)}
    assert set(changed) == names - set(cache.NOT_OF_A_CASE)
    assert set(cache.NOT_OF_A_CASE) < names
    paths = {path(replace(CONFIG, **{name: value})) for name, value in changed.items()}
    assert len(paths | {path(CONFIG), path(CONFIG, "checked")}) == len(changed) + 2
    for name, value in {"dir": "b", "fold": 1, "training_cases": 3, "cache_dir": "c"}.items():
        assert path(replace(CONFIG, **{name: value})) == path(CONFIG)


def test_changed_code_and_another_margin_make_new_files(tmp_path, monkeypatch):
    case = write_boxes(tmp_path)
    prepare([case], CONFIG, 0, tmp_path / "cache")
    prepare([case], CONFIG, 1, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 2
    monkeypatch.setattr(cache, "_code", lambda: "changed")
    prepare([case], CONFIG, 0, tmp_path / "cache")
    assert len(entries(tmp_path / "cache")) == 3


def spoilt(path):
    """What may lie under an entry's name in its stead."""
    whole = path.read_bytes()
    torch.save({"key": path.stem[-cache.KEY_DIGITS :], "image": 1}, path)
    other = path.read_bytes()
    torch.save({"weights": torch.zeros(3)}, path)
    return [b"", whole[: len(whole) // 2], whole[:-1], b"no entry" * 100, other, path.read_bytes()]


def test_a_damaged_entry_is_named_once_and_made_anew(tmp_path, capsys):
    case = write_boxes(tmp_path)
    samples = TrainingSet([case], CONFIG, MARGIN, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    good = path.read_bytes()
    for content in spoilt(path):
        for again in (lambda: prepare([case], CONFIG, MARGIN, tmp_path / "cache"), lambda: samples[0]):
            path.write_bytes(content)
            capsys.readouterr()
            again()
            warnings = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
            assert warnings == [f"warning: {path}: wanted a cached case, found an unreadable file; it is made anew"]
            assert path.read_bytes() == good


def test_an_entry_under_the_name_of_another_is_not_taken_for_it(tmp_path, capsys):
    cases = [write_boxes(tmp_path, "a"), write_boxes(tmp_path, "b", values=(500,))]
    samples = TrainingSet(cases, CONFIG, 0, tmp_path / "cache")
    expected = samples[1].label.clone()
    first, second = sorted((tmp_path / "cache").iterdir())
    second.write_bytes(first.read_bytes())
    assert torch.equal(samples[1].label, expected)
    assert str(second) in capsys.readouterr().err


def test_samples_outlive_the_folder_and_come_back_into_it(tmp_path):
    case = write_boxes(tmp_path)
    samples = TrainingSet([case], CONFIG, 0, tmp_path / "cache")
    sample = samples[0]
    (path,) = (tmp_path / "cache").iterdir()
    path.unlink()
    path.parent.rmdir()
    same(samples[0], sample)
    assert path.is_file()
    case.image.unlink()
    same(samples[0], sample)
    path.unlink()
    with pytest.raises(InputError, match="ct_image"):
        samples[0]


@pytest.mark.parametrize("where", ["full", "file"])
def test_a_folder_that_cannot_be_written_to_is_one_sentence_and_nothing_half_written(tmp_path, monkeypatch, where):
    case = write_boxes(tmp_path)
    folder = tmp_path / "cache"
    if where == "full":

        def write_half(path, content):
            with path.open("wb") as file:
                file.write(content[: len(content) // 2])
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(Path, "write_bytes", write_half)
    else:
        folder.touch()
    for start in (prepare, TrainingSet):
        with pytest.raises(
            InputError, match=rf"^data\.cache_dir: {folder}/ct-\w+\.pt: cannot be written \([^()\n]+\)$"
        ):
            start([case], CONFIG, 0, folder)
    assert where == "file" or entries(folder) == []


def test_a_full_cache_in_a_folder_that_cannot_be_written_to_will_do(tmp_path, monkeypatch):
    case = write_boxes(tmp_path)
    prepare([case], CONFIG, 0, tmp_path / "cache")
    (tmp_path / "cache" / ".ct.partial-elsewhere-1-abcdefgh.pt").touch()

    def refuse(*_, **__):
        raise PermissionError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    monkeypatch.setattr(Path, "unlink", refuse)
    prepare([case], CONFIG, 0, tmp_path / "cache")
    assert TrainingSet([case], CONFIG, 0, tmp_path / "cache")[0].label.any()


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    case = write_boxes(tmp_path)
    (tmp_path / "cache").mkdir()
    left = tmp_path / "cache" / f".ct-0.pt.partial-{HOST}-999999999-abcdefgh.pt"
    left.touch()
    prepare([case], CONFIG, 0, tmp_path / "cache")
    assert not left.exists()


def test_two_that_make_the_same_samples_at_once_both_end_well(tmp_path):
    cases = [write_boxes(tmp_path, name) for name in "abc"]
    start = threading.Barrier(2)
    made = []

    def make():
        start.wait()
        prepare(cases, CONFIG, 0, tmp_path / "cache")
        made.append([sample.label.sum().item() for sample in TrainingSet(cases, CONFIG, 0, tmp_path / "cache")])

    threads = [threading.Thread(target=make) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 2
    assert made[0] == made[1]
    assert len(entries(tmp_path / "cache")) == 3


def test_of_a_sample_that_is_drawn_only_the_mapping_is_held(tmp_path):
    """Volumes are mapped from the file: none of their memory is the process's own until somebody writes to it."""
    case = write_boxes(tmp_path)
    sample = TrainingSet([case], CONFIG, 0, tmp_path / "cache")[0]
    (path,) = (tmp_path / "cache").iterdir()
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("only Linux lists what a process maps")
    assert str(path) in maps.read_text()
    del sample
    assert str(path) not in maps.read_text()


@pytest.mark.parametrize("name", ["Ω" * 60, "a b.c", "x" * 240, os.fsdecode(b"\xff\xfe")])
def test_any_name_of_a_case_is_one_of_a_file(tmp_path, name):
    case = replace(write_boxes(tmp_path), name=name)
    prepare([case], CONFIG, 0, tmp_path / "cache")
    (path,) = (tmp_path / "cache").iterdir()
    assert read_entry(path, lambda entry: entry["warnings"]) == []


def test_a_folder_that_torch_cannot_open_is_one_sentence(tmp_path):
    with pytest.raises(InputError, match=r"data\.cache_dir: wanted a folder whose name is UTF-8, found '.*udcff'"):
        prepare([write_boxes(tmp_path)], CONFIG, 0, tmp_path / os.fsdecode(b"\xff"))


def test_the_cache_lies_in_the_run_folder_unless_the_config_names_another():
    config = Config()
    config.training.run_dir = "runs/a"
    assert config.cache_dir == Path("runs/a/cache")
    config.data.cache_dir = "shared"
    assert config.cache_dir == Path("shared")
