"""Structures: the one place that numbers them."""

import numpy as np
import pytest
import torch

from implicitmeshnet.config import DataConfig
from implicitmeshnet.structures import Structures

HEART = Structures.of(DataConfig(structures={"LV": [500], "Myo": [205], "LA": [420, 421]}, encloses={"Myo": ["LV"]}))
LABELS = np.array([0, 500, 205, 420, 421, 7], np.int32)


def test_a_config_gives_names_values_and_who_holds_whom():
    assert HEART.names == ("LV", "Myo", "LA")
    assert HEART.values == ((500,), (205,), (420, 421))
    assert HEART.encloses == ((), (0,), ())
    assert (len(HEART), HEART.class_count) == (3, 4)
    assert HEART.label_values == [205, 420, 421, 500]
    assert HEART.written == {"LV": 500, "Myo": 205, "LA": 420}


def test_labels_become_classes_and_classes_the_first_label_of_each():
    classes = HEART.class_map(LABELS)
    assert classes.dtype == np.uint8
    assert classes.tolist() == [0, 1, 2, 3, 3, 0]
    assert HEART.label_map(classes).tolist() == [0, 500, 205, 420, 420, 0]
    assert HEART.label_map(classes).dtype == np.int16


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_mesh_holds_its_own_and_what_it_encloses(kind):
    classes = kind(HEART.class_map(LABELS))
    assert HEART.own(classes, 1).tolist() == [False, False, True, False, False, False]
    assert HEART.held(classes, 1).tolist() == [False, True, True, False, False, False]
    assert HEART.held(classes, 2).tolist() == [False, False, False, True, True, False]


def test_counts_and_masks_are_of_each_structures_own_voxels():
    assert HEART.counts(HEART.class_map(LABELS)).tolist() == [1, 1, 2]
    assert HEART.counts(np.zeros(5, np.uint8)).tolist() == [0, 0, 0]
    assert HEART.mask(LABELS, 2).tolist() == [False, False, False, True, True, False]
    assert HEART.any_in(LABELS)
    assert not HEART.any_in(np.array([0, 7, 1]))


def test_what_is_ignored_is_the_last_class_and_no_structures():
    structures = Structures.of(DataConfig(structures={"LV": [500], "LA": [420]}, ignore=[7, 205]))
    classes = structures.class_map(LABELS)
    assert classes.tolist() == [0, 1, 3, 2, 0, 3]
    assert structures.ignored(classes).tolist() == structures.ignored_in(LABELS).tolist()
    assert structures.ignored_in(LABELS).tolist() == [False, False, True, False, False, True]
    assert structures.counts(classes).tolist() == [1, 1]
    assert structures.class_count == 3
    assert not structures.any_in(np.array([7, 205]))
    assert HEART.ignored_in(LABELS) is None


def test_a_class_map_holds_as_many_structures_as_a_config_may_name_and_what_is_ignored():
    groups = {f"s{number}": [number] for number in range(1, 255)}
    structures = Structures.of(DataConfig(structures=groups, ignore=[300]))
    assert structures.class_map(np.array([0, 1, 254, 300])).tolist() == [0, 1, 254, 255]


def test_own_parts_leave_out_what_is_enclosed_and_change_no_mask():
    masks = [np.array([False, True, False]), np.array([True, True, False]), np.array([False, False, True])]
    parts = HEART.own_parts(masks)
    assert [part.tolist() for part in parts] == [[False, True, False], [True, False, False], [False, False, True]]
    assert masks[1].tolist() == [True, True, False]
