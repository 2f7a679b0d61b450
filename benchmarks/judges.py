"""What others' code says of a set of closed meshes that a solver is to take: manifold3d, TetGen and VTK.

    pip install manifold3d tetgen vtk    # for benchmarks/simulation.py and a test; the package needs none of them

manifold3d (Lalish) computes exact volumes of intersections, TetGen (Si, ACM TOMS 2015) fills all meshes of a set
together with tetrahedra and refuses surfaces that cross, VTK's collision filter looks for cells that touch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from implicitmeshnet.surfaces.conforming import Conforming

SHARP_DEG = 5.0


@dataclass(frozen=True)
class Verdict:
    """Of one set of S closed meshes."""

    manifolds: int  # of S, those that manifold3d takes, of genus 0 and positive volume
    shared_mm3: float  # the most that two meshes share of which neither encloses the other
    outside_mm3: float  # the most of a mesh that lies outside the one that encloses it
    contacts: int  # pairs of cells of two meshes in which VTK finds a contact
    tetrahedra: int  # 0 where TetGen refuses the set
    inverted: int  # tetrahedra of no or the other sign's volume
    smallest_dihedral_deg: float
    sharp_percent: float  # of the tetrahedra, those with a dihedral angle below SHARP_DEG

    def passed(self, count: int) -> bool:
        """Whether all judges are content with the set of so many meshes."""
        apart = self.shared_mm3 == 0 and self.outside_mm3 == 0 and self.contacts == 0
        return self.manifolds == count and apart and self.tetrahedra > 0 and self.inverted == 0


def judged(meshes: np.ndarray, faces: np.ndarray, encloses: Sequence[Sequence[int]]) -> Verdict:
    """The verdict on meshes (S, V, 3) in mm with faces (F, 3), `encloses` as in `Structures`."""
    found = filled(meshes, faces)
    return Verdict(*intersected(meshes, faces, encloses), contacts(meshes, faces), *found)


def intersected(meshes: np.ndarray, faces: np.ndarray, encloses: Sequence[Sequence[int]]) -> tuple[int, float, float]:
    """How many of the meshes manifold3d takes, the most that two share, the most outside an encloser, mm^3."""
    solids = [_solid(mesh, faces) for mesh in meshes]
    sound = [solid for solid in solids if _is_sound(solid)]
    shared = [0.0]
    outside = [0.0]
    for one, other in permutations(range(len(meshes)), 2):
        if other in encloses[one]:
            outside.append((solids[other] - solids[one]).volume())
        elif one < other and one not in encloses[other]:
            shared.append((solids[one] ^ solids[other]).volume())
    return len(sound), max(shared), max(outside)


def _solid(mesh: np.ndarray, faces: np.ndarray):
    """A mesh (V, 3) as a solid of manifold3d."""
    import manifold3d

    own = manifold3d.Mesh(np.ascontiguousarray(mesh, dtype=np.float32), np.ascontiguousarray(faces, dtype=np.uint32))
    return manifold3d.Manifold(own)


def _is_sound(solid) -> bool:
    import manifold3d

    return solid.status() == manifold3d.Error.NoError and solid.genus() == 0 and solid.volume() > 0


def filled(meshes: np.ndarray, faces: np.ndarray) -> tuple[int, int, float, float]:
    """Tetrahedra in which TetGen fills all meshes together, how many are inverted or flat, the smallest dihedral angle,
    and how many percent have one below SHARP_DEG.

    0 tetrahedra where it refuses the surfaces. They stay as they are (-pqYA); where TetGen may divide their faces, four
    of 60 528 tetrahedra of one phantom had the wrong sign, around points that TetGen had added.
    """
    count, size, _ = meshes.shape
    numbered = np.concatenate([faces + size * number for number in range(count)])
    found = _tetrahedra(meshes.reshape(-1, 3), numbered)
    return (0, 0, 0.0, 0.0) if found is None else _quality(found[0])


def filled_regions(surface: Conforming) -> tuple[tuple[int, int, float, float], np.ndarray]:
    """What `filled` says of a surface with shared walls, and how many mm^3 of tetrahedra each of its regions has.

    The latter are (S + 1,); the first, of what is outside, are those of hollows between the structures.
    """
    volumes = np.zeros(len(surface.field.depths))
    found = tetrahedra_by_region(surface)
    if found is None:
        return (0, 0, 0.0, 0.0), volumes
    corners, regions = found
    np.add.at(volumes, regions, _volumes(corners))
    return _quality(corners), volumes


def tetrahedra_by_region(surface: Conforming, largest_mm3: float | None = None) -> tuple[np.ndarray, np.ndarray] | None:
    """TetGen's tetrahedra (T, 4 corners, 3) of a surface with shared walls, and the region of each, (T,).

    What TetGen fills between walls is of the region in which most of it lies. No tetrahedron is larger than
    `largest_mm3`; without it they grow with their distance from the surface. None where TetGen refuses the surface.
    """
    field = surface.field
    found = _tetrahedra(surface.vertices, surface.faces, largest_mm3)
    if found is None:
        return None
    corners, chambers = found
    voxels = np.rint((corners.mean(1) - field.origin_mm) / field.spacing_mm).astype(int)
    claims = np.zeros((chambers.max() + 1, len(field.depths)))
    np.add.at(claims, (chambers, field.labels[tuple(voxels.T)]), _volumes(corners))
    return corners, claims.argmax(1)[chambers]


def _volumes(corners: np.ndarray) -> np.ndarray:
    """Of tetrahedra (T, 4, 3), whatever their order of corners: (T,)."""
    return np.abs(np.linalg.det(corners[:, 1:] - corners[:, :1])) / 6


def _tetrahedra(
    points: np.ndarray, faces: np.ndarray, largest_mm3: float | None = None
) -> tuple[np.ndarray, np.ndarray] | None:
    """TetGen's tetrahedra (T, 4 corners, 3), and which of the chambers between the faces each fills, (T,) from 0 on.

    None where it refuses the faces.
    """
    import tetgen

    limit = {} if largest_mm3 is None else {"fixedvolume": True, "maxvolume": largest_mm3}
    mesher = tetgen.TetGen(points.astype(np.float64), faces.astype(np.int32))
    try:
        nodes, elements, attributes, *_ = mesher.tetrahedralize(
            plc=True, quality=True, nobisect=True, regionattrib=True, **limit
        )
    except RuntimeError:
        return None
    _, chambers = np.unique(attributes, return_inverse=True)
    return nodes[elements[:, :4]], chambers.ravel()


def _quality(corners: np.ndarray) -> tuple[int, int, float, float]:
    """What `filled` says of tetrahedra (T, 4, 3)."""
    edges = corners[:, 1:] - corners[:, :1]
    volumes = np.linalg.det(edges)
    wanted = np.sign(np.median(volumes))  # TetGen's own order of corners
    smallest = dihedral_angles_deg(corners).min(1)
    sharp = 100 * float((smallest < SHARP_DEG).mean())
    return len(corners), int((volumes * wanted <= 0).sum()), float(smallest.min()), sharp


def dihedral_angles_deg(corners: np.ndarray) -> np.ndarray:
    """The six dihedral angles (T, 6) of tetrahedra (T, 4 corners, 3)."""
    angles = []
    for i, j in ((0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)):
        k, m = sorted({0, 1, 2, 3} - {i, j})
        edge = corners[:, j] - corners[:, i]
        # Each face's direction away from the edge, within the face.
        one = np.cross(edge, corners[:, k] - corners[:, i])
        other = np.cross(edge, corners[:, m] - corners[:, i])
        sine = np.linalg.norm(np.cross(one, other), axis=1)
        angles.append(np.degrees(np.arctan2(sine, (one * other).sum(1))))
    return np.stack(angles, 1)


def contacts(meshes: np.ndarray, faces: np.ndarray) -> int:
    """Contacts that VTK's collision filter finds between any two of the meshes."""
    from vtkmodules.vtkCommonMath import vtkMatrix4x4
    from vtkmodules.vtkFiltersModeling import vtkCollisionDetectionFilter

    surfaces = [_polydata(mesh, faces) for mesh in meshes]
    found = 0
    for one in range(len(surfaces)):
        for other in range(one):
            judge = vtkCollisionDetectionFilter()
            for place, surface in enumerate((surfaces[one], surfaces[other])):
                judge.SetInputData(place, surface)
                judge.SetMatrix(place, vtkMatrix4x4())
            judge.SetBoxTolerance(0.0)
            judge.SetCellTolerance(0.0)
            judge.SetCollisionModeToAllContacts()
            judge.Update()
            found += judge.GetNumberOfContacts()
    return found


def _polydata(mesh: np.ndarray, faces: np.ndarray):
    from vtkmodules.util.numpy_support import numpy_to_vtk, numpy_to_vtkIdTypeArray
    from vtkmodules.vtkCommonCore import vtkPoints
    from vtkmodules.vtkCommonDataModel import vtkCellArray, vtkPolyData

    points = vtkPoints()
    points.SetData(numpy_to_vtk(np.ascontiguousarray(mesh, dtype=np.float64), deep=True))
    cells = vtkCellArray()
    cells.SetData(3, numpy_to_vtkIdTypeArray(np.ascontiguousarray(faces, dtype=np.int64).ravel(), deep=True))
    surface = vtkPolyData()
    surface.SetPoints(points)
    surface.SetPolys(cells)
    return surface
