"""docs/slicer.md: its module on real results, with a stand-in for Slicer that notes what is asked of it."""

import re
import sys
from pathlib import Path
from types import ModuleType
from unittest.mock import MagicMock

import numpy as np
import pytest
from meshes import sphere

from implicitmeshnet.data.volume import Grid
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.figures import colours
from implicitmeshnet.surfaces.files import write_mesh
from implicitmeshnet.surfaces.label_files import write_labelmap

PAGE = Path(__file__).resolve().parents[1] / "docs/slicer.md"
NAMES = ("LV", "LV_wall")
STRUCTURES = Structures(NAMES, ((1,), (2,)), ((), (0,)))


@pytest.fixture
def slicer(monkeypatch):
    """A stand-in for Slicer's own module: each file that is loaded is a node of its own."""
    stand_in = MagicMock(spec=["util", "mrmlScene"])
    stand_in.util = MagicMock(spec=["loadModel", "loadSegmentation", "loadLabelVolume"])
    for kind in ("loadModel", "loadSegmentation", "loadLabelVolume"):
        getattr(stand_in.util, kind).side_effect = lambda path: MagicMock(path=path)
    monkeypatch.setitem(sys.modules, "slicer", stand_in)
    return stand_in


@pytest.fixture
def module(slicer):
    """The page's one block of Python, as a module."""
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    loaded = ModuleType("load_results")
    exec(compile(code, "load_results.py", "exec"), loaded.__dict__)
    return loaded


def write_case(folder, name, labelmap="seg.nrrd", names=NAMES):
    """A case's label map and its meshes, as the evaluation writes them."""
    structures = STRUCTURES.chosen(names)
    palette = list(colours(structures.names).values())
    labels = np.ones((4, 4, 4), np.int16)
    path = folder / f"{name}_mesh_labelmap.{labelmap}"
    write_labelmap(path, labels, Grid(labels.shape, np.eye(4)), structures, palette)
    for each in names:
        stem = f"{name}_{each}" if len(names) > 1 else name
        write_mesh(folder / f"{stem}_mesh.ply", *sphere())


def test_each_mesh_has_the_name_and_colour_of_its_segment(tmp_path, module, slicer):
    write_case(tmp_path, "p")
    (nodes,) = module.load(tmp_path, see_through=["LV_wall"]).values()
    segmentation, *meshes = nodes
    assert segmentation.path == str(tmp_path / "p_mesh_labelmap.seg.nrrd")
    slicer.util.loadLabelVolume.assert_not_called()
    for mesh, name, opacity in zip(meshes, NAMES, (1.0, module.OPACITY), strict=True):
        assert mesh.path == str(tmp_path / f"p_{name}_mesh.ply")
        mesh.SetName.assert_called_once_with(name)
        display = mesh.GetDisplayNode.return_value
        wanted = [byte / 255 for byte in bytes.fromhex(colours(NAMES)[name][1:])]
        assert display.SetColor.call_args.args == pytest.approx(wanted, abs=1e-5)
        display.SetOpacity.assert_called_once_with(opacity)


def test_a_case_is_a_folder_with_all_its_nodes(tmp_path, module, slicer):
    write_case(tmp_path, "p")
    hierarchy = slicer.mrmlScene.GetSubjectHierarchyNode.return_value
    (nodes,) = module.load(tmp_path).values()
    hierarchy.CreateFolderItem.assert_called_once_with(hierarchy.GetSceneItemID.return_value, "p")
    assert [call.args[0] for call in hierarchy.GetItemByDataNode.call_args_list] == nodes
    assert len(nodes) == hierarchy.SetItemParent.call_count == 3
    assert {call.args[1] for call in hierarchy.SetItemParent.call_args_list} == {
        hierarchy.CreateFolderItem.return_value
    }


def test_a_label_map_without_colours_is_loaded_as_such(tmp_path, module, slicer):
    write_case(tmp_path, "p", labelmap="nii.gz")
    (nodes,) = module.load(tmp_path).values()
    slicer.util.loadSegmentation.assert_not_called()
    assert nodes[0].path.endswith("p_mesh_labelmap.nii.gz")
    nodes[1].GetDisplayNode.return_value.SetColor.assert_not_called()


def test_meshes_belong_to_the_case_with_the_longest_name(tmp_path, module):
    for name in ("p", "p_2", "q.1"):
        write_case(tmp_path, name)
    (tmp_path / "statistics.csv").write_text("")
    found = module.results(tmp_path)
    assert sorted(found) == ["p", "p_2", "q.1"]
    assert sorted(path.name for path in found["p_2"][1].values()) == ["p_2_LV_mesh.ply", "p_2_LV_wall_mesh.ply"]
    assert sorted(found["q.1"][1]) == list(NAMES)


def test_one_structure_alone_has_its_segments_name(tmp_path, module):
    write_case(tmp_path, "p", names=("LV",))
    ((_, mesh),) = module.load(tmp_path).values()
    mesh.SetName.assert_called_once_with("LV")


def test_cases_are_chosen_by_name_and_a_missing_one_is_named(tmp_path, module, slicer):
    for name in ("p", "q"):
        write_case(tmp_path, name)
    assert list(module.load(tmp_path, ["q"])) == ["q"]
    with pytest.raises(ValueError, match="wanted cases among p, q, found r"):
        module.load(tmp_path, ["r"])
