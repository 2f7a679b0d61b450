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


def test_own_parts_leave_out_what_is_enclosed_and_change_no_mask():
    masks = [np.array([False, True, False]), np.array([True, True, False]), np.array([False, False, True])]
    parts = HEART.own_parts(masks)
    assert [part.tolist() for part in parts] == [[False, True, False], [True, False, False], [False, False, True]]
    assert masks[1].tolist() == [True, True, False]
