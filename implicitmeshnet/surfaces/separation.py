"""Meshes of several structures moved apart, until none crosses itself or another, as solvers want them.

Each mesh is mended by itself first, and meshes that lie in each other almost wholly share the room out by planes. Then,
round by round, every vertex that lies in another mesh, or closer to it than the gap, moves half of what is missing
along the other mesh's distance; the other mesh's vertices, which see the first one, move the other half, and by and by
all of it where the first mesh, thin perhaps, crosses itself for that. A vertex that has passed the other mesh's middle,
so that its way out leads on through it, goes back along its own mesh's normal.
A structure that another encloses has to lie inside it instead. Faces that cross are moved as a whole too, by their
deepest point; the vertices of what still crosses after some rounds are smoothed too, but never towards the other mesh.
Where all that does not end, the meshes that cross most make way for the others, and it begins anew. What is left at
last is drawn back (`repair.retreated`), so that every input has an end.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

from implicitmeshnet.script import InputError
from implicitmeshnet.surfaces.crossing import crossing_pairs, snapped
from implicitmeshnet.surfaces.proximity import near, vertex_normals
from implicitmeshnet.surfaces.repair import grown, neighbour_mean, retreated, sites_of, untangle, vertices_of
from implicitmeshnet.surfaces.soundness import is_closed, mesh_volume_ml
from implicitmeshnet.surfaces.stars import star

GAP_MM = 0.1
ROUNDS = 48
"""After so many what still crosses is drawn back."""
PATIENCE = 12
"""Rounds in which the pairs of faces that cross have not become fewer, after which that is done too."""
ROUNDS_FOR_THE_GAP = 8
"""After so many without a crossing meshes are good, though the gap lacks somewhere."""
ROUNDS_OF_PUSHES = 3
"""Before what still crosses is smoothed too."""
BURDEN_STEP = 0.1
"""By which a mesh that crosses itself is relieved of pushes in each round; the mesh that it crosses takes them over."""
ROUNDS_PER_RING = 3
"""Without fewer crossings, after which the smoothed region grows by one ring of vertices."""
DEEP_MM = 1.0
"""In another mesh, beyond which a vertex may have passed its middle; after ROUNDS_OF_PUSHES any depth."""
PASSED = 0.3
"""The least cosine between a mesh's own normal and the other's way out where a vertex has passed the middle."""
CROWDED = 1 / 3
"""Of the vertices of each of two meshes in the other one, from which on the two share the room out."""
TOLERANCE = 0.1
"""By which a vertex may miss its gap, relative to it."""
REACH_MM = 3.0
"""From another mesh, within which no smoothing moves a vertex towards it."""
DEEPEST_MM = 30.0
"""That a face which crosses another mesh may lie in it."""
ORDER = 4
SAMPLES = np.array([(i, j, ORDER - i - j) for i in range(ORDER + 1) for j in range(ORDER + 1 - i)]) / ORDER
"""Points of a face, by barycentric weights (15, 3)."""


def separate(
    vertices: np.ndarray,
    faces: np.ndarray,
    sphere: np.ndarray,
    encloses: Sequence[Sequence[int]],
    gap_mm: float = GAP_MM,
    walls_mm: np.ndarray | None = None,
) -> np.ndarray:
    """Meshes that cross neither themselves nor each other and lie in what encloses them: (S, V, 3) float64, snapped.

    vertices (S, V, 3) in mm, faces (F, 3) of a template `sphere` (V, 3), `encloses` as in `Structures`. Between any two
    meshes there will be `gap_mm`, but where they had to be drawn back; where `walls_mm` (S, V) of a structure that is
    enclosed is larger, that much. The same input gives the same result. Raises InputError where the faces
    leave a mesh open, and for coordinates that are not finite.
    """
    if not vertices.size:
        return vertices.astype(np.float64)
    if not is_closed(faces):
        raise InputError("faces: wanted those of a closed mesh, found edges without two faces that run along them")
    meshes = snapped(vertices)
    gaps = np.full(meshes.shape[:2], gap_mm)
    if walls_mm is not None:
        gaps = np.maximum(gaps, walls_mm)
    scene = Scene(faces, [set(inner) for inner in encloses], gaps, neighbour_mean(faces, meshes.shape[1]))
    pairs = scene.crossings(meshes)
    for one, mesh in enumerate(meshes):
        if one in scene.crossing_themselves(pairs) or mesh_volume_ml(mesh, faces) <= 0:
            meshes[one] = untangle(mesh, faces, sphere)
    outer = [next((one for one, inner in enumerate(encloses) if own in inner), None) for own in range(len(meshes))]
    apart, is_done = _pushed_apart(scene, snapped(scene.shared_out(meshes, outer)), sphere)
    if not is_done:
        crossed = scene.faces_of(pairs, len(meshes)).sum(1)
        apart, is_done = _pushed_apart(scene, scene.cleared(meshes, sphere, outer, crossed), sphere)
    return apart if is_done else retreated(apart, faces, sphere, scene.crossed_or_misplaced, outer)


def _pushed_apart(scene: "Scene", meshes: np.ndarray, sphere: np.ndarray) -> tuple[np.ndarray, bool]:
    """Meshes (S, V, 3) after the rounds of pushes: the best of any round, and whether none crosses any more."""
    crossings = Crossings(scene)
    best = meshes
    fewest = len(crossings.of(meshes)) + 1
    best_round = 0
    clean = 0
    stuck = np.zeros(meshes.shape[:2], dtype=bool)
    burdens = np.full((len(meshes), len(meshes)), 0.5)
    for number in range(ROUNDS):
        pushed, lacking = scene.pushed(meshes, burdens, stuck, DEEP_MM if number <= ROUNDS_OF_PUSHES else 0.0)
        meshes = snapped(pushed)
        pairs = crossings.of(meshes)
        clean = 0 if len(pairs) else clean + 1
        at_most_left = lacking / 2  # of a vertex whose opposite had nothing to move
        apart = at_most_left < TOLERANCE * scene.gaps.min() or clean >= ROUNDS_FOR_THE_GAP
        if apart and not len(pairs) and not scene.misplaced(meshes):
            return meshes, True
        if len(pairs) < fewest or not len(pairs):
            best = meshes.copy()
            fewest = len(pairs)
            best_round = number
        if number - best_round > PATIENCE:
            break
        if number and len(pairs):
            meshes = scene.pushed_faces(meshes, burdens, pairs)
        if number >= ROUNDS_OF_PUSHES:
            crossed = scene.faces_of(pairs, len(meshes))
            rings = (number - best_round) // ROUNDS_PER_RING
            own = [grown(vertices_of(scene.faces, each, meshes.shape[1]), scene.mean, rings) for each in crossed]
            stuck = np.stack(own)
            burdens = scene.shifted(burdens, pairs)
        for one in scene.crossing_themselves(pairs):
            meshes[one] = untangle(meshes[one], scene.faces, sphere)
    return best, False


@dataclass(frozen=True)
class Scene:
    """What stays the same about several meshes while they move."""

    faces: np.ndarray  # (F, 3)
    encloses: Sequence[set[int]]
    gaps: np.ndarray  # (S, V) mm that each vertex keeps from other meshes
    mean: csr_matrix  # (V, V), see `neighbour_mean`

    def side(self, one: int, other: int) -> float:
        """1 where a mesh has to lie outside of another, -1 where inside."""
        return -1.0 if one in self.encloses[other] else 1.0

    def sides(self, other: int, count: int) -> np.ndarray:
        """`side` of each of `count` meshes and another: (S,)."""
        return np.array([self.side(one, other) for one in range(count)])

    def crossings(self, meshes: np.ndarray, chosen: np.ndarray | None = None) -> np.ndarray:
        """The pairs of faces that cross or touch, (P, 2); face f of mesh s has the number s F + f.

        Where faces are `chosen`, bool (S F,), only pairs that have one of these.
        """
        count, size, _ = meshes.shape
        numbered = np.concatenate([self.faces + size * number for number in range(count)])
        return crossing_pairs(meshes.reshape(-1, 3), numbered, chosen)

    def faces_of(self, pairs: np.ndarray, count: int) -> np.ndarray:
        """Which faces of `count` meshes are in any of the pairs (P, 2): bool (S, F)."""
        crossed = np.zeros(count * len(self.faces), dtype=bool)
        crossed[pairs.ravel()] = True
        return crossed.reshape(count, -1)

    def crossing_themselves(self, pairs: np.ndarray) -> list[int]:
        """The meshes of which two faces are a pair."""
        one, other = pairs.T // len(self.faces)
        return np.unique(one[one == other]).tolist()

    def shifted(self, burdens: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """The `burdens` (S, S) of the next round: which share of what each mesh lacks from each other it moves itself.

        A mesh that crosses itself, as a thin one does where it is pushed from outside, leaves BURDEN_STEP more of it to
        one that does not. Of two meshes the shares add up to 1.
        """
        themselves = self.crossing_themselves(pairs)
        shifted = burdens.copy()
        structures = np.unique(pairs // len(self.faces), axis=0)
        both = np.concatenate([structures, structures[:, ::-1]])
        for one, other in both.tolist():
            if one in themselves and other not in themselves:
                shifted[one, other] = max(burdens[one, other] - BURDEN_STEP, 0)
                shifted[other, one] = 1 - shifted[one, other]
        return shifted

    def misplaced(self, meshes: np.ndarray) -> list[tuple[int, int]]:
        """The pairs of meshes, none of which cross, where one lies in the other and should not, or the reverse."""
        found = []
        first = meshes[:, 0]
        for other, mesh in enumerate(meshes):
            there = near(first, mesh, self.faces, 0.0)
            inside = np.zeros(len(meshes), dtype=bool)
            inside[there.rows] = there.distance < 0
            for one in range(len(meshes)):
                if one == other or (other in self.encloses[one]):
                    continue
                if inside[one] != (self.side(one, other) < 0):
                    found.append((one, other))
        return found

    def crossed_or_misplaced(self, meshes: np.ndarray) -> np.ndarray:
        """The faces, bool (S, F), that cross; all of meshes that lie where they should not."""
        crossed = self.faces_of(self.crossings(meshes), len(meshes))
        if not crossed.any():
            for pair in self.misplaced(meshes):
                crossed[list(pair)] = True
        return crossed

    def cleared(
        self, meshes: np.ndarray, sphere: np.ndarray, outer: Sequence[int | None], crossed: np.ndarray
    ) -> np.ndarray:
        """Meshes (S, V, 3) each of which is clear of those before it, but for edges between rays: (S, V, 3) snapped.

        First come those with the fewest `crossed` faces (S,), in the mean of a structure and what it encloses, of
        equals the smallest, and what encloses before what is enclosed. One that crosses any before it, or lies on the
        wrong side, becomes what can be seen of it there.
        """
        roots = np.array([_outermost(own, outer) for own in range(len(meshes))])
        burdens = [crossed[roots == root].mean() for root in roots]
        sizes = [mesh_volume_ml(meshes[root], self.faces) for root in roots]
        depths = [sum(own in inner for inner in self.encloses) for own in range(len(meshes))]
        moved = meshes.copy()
        standing: list[int] = []
        for own in sorted(range(len(meshes)), key=lambda one: (burdens[one], sizes[one], depths[one])):
            touching = {*map(tuple, (self.crossings(moved) // len(self.faces)).tolist()), *self.misplaced(moved)}
            if any((own, other) in touching or (other, own) in touching for other in standing):
                inside = [other for other in standing if own in self.encloses[other]]
                outside = [other for other in standing if other not in inside]
                centre, rays = star(moved[own], moved[outside], self.faces, sphere, moved[inside])
                moved[own] = snapped(centre + rays)
            standing.append(own)
        return moved

    def shared_out(self, meshes: np.ndarray, outer: Sequence[int | None]) -> np.ndarray:
        """Meshes that lie in each other almost wholly (`crowded`), each drawn into a room of its own: (S, V, 3).

        The way out of such a mesh leads past most of it. So each takes the Voronoi cell of its centre among the centres
        of those that it is crowded with; a mesh that is enclosed takes that of what encloses it. A vertex beyond its
        cell goes to the cell's border, towards the mean of its mesh's vertices within the cell: what is star-shaped
        around that stays so. `outer` is the structure that encloses each, if one does.
        """
        roots = np.array([_outermost(own, outer) for own in range(len(meshes))])
        crowded = self.crowded(meshes)
        pairs = np.unique(roots[np.argwhere(crowded)], axis=0)
        pairs = pairs[pairs[:, 0] != pairs[:, 1]]
        if not len(pairs):
            return meshes
        moved = meshes.copy()
        chosen = np.unique(pairs)
        sites = np.zeros((len(meshes), 3))
        sites[chosen] = sites_of(meshes[chosen])
        for one, mesh in enumerate(meshes):
            rivals = pairs[pairs[:, 0] == roots[one], 1]
            if not len(rivals):
                continue
            ways = sites[rivals] - sites[roots[one]]  # (R, 3)
            middles = sites[roots[one]] + ways / 2
            ways = ways / np.maximum(np.linalg.norm(ways, axis=1, keepdims=True), 1e-9)
            borders = (ways * middles).sum(1) - self.gaps[one].max() / 2  # (R,) along the ways
            beyond = mesh @ ways.T - borders  # (V, R)
            within = (beyond < 0).all(1)
            if not within.any():
                continue
            middle = mesh[within].mean(0)
            room = borders - ways @ middle  # (R,) positive
            shares = (room / np.maximum(beyond + room, room)).min(1)
            moved[one] = middle + shares[:, None] * (mesh - middle)
        return moved

    def crowded(self, meshes: np.ndarray) -> np.ndarray:
        """The pairs of meshes of which more than CROWDED of each is in the other, and should not: bool (S, S)."""
        count, size, _ = meshes.shape
        shares = np.zeros((count, count))
        for other, mesh in enumerate(meshes):
            there = near(meshes.reshape(-1, 3), mesh, self.faces, 0.0)
            touching = there.rows[there.distance <= 0] // size
            shares[:, other] = np.bincount(touching, minlength=count) / size
            shares[other, other] = 0
            shares[list(self.encloses[other]), other] = 0
        return np.minimum(shares, shares.T) > CROWDED

    def pushed(
        self, meshes: np.ndarray, burdens: np.ndarray, stuck: np.ndarray, deep_mm: float
    ) -> tuple[np.ndarray, float]:
        """Each vertex moved its mesh's share of what its gap lacks, the `stuck` ones (S, V) smoothed too: (S, V, 3).

        And the most that any of them lacked, in mm. `burdens` (S, S) are the shares, see `shifted`. Vertices deeper
        than `deep_mm` in another mesh go back along their own mesh's normal where they have passed the other's middle.
        """
        count, size, _ = meshes.shape
        flat = meshes.reshape(-1, 3)
        structure = np.repeat(np.arange(count), size)
        gaps = self.gaps.ravel()
        widest = self.gaps.max(1)
        reach = np.where(stuck.any(1), np.maximum(widest, REACH_MM), widest)[structure]
        normals = np.concatenate([vertex_normals(mesh, self.faces) for mesh in meshes])
        means = np.stack([self.mean @ mesh for mesh in meshes])
        smooth = np.where(stuck[..., None], (means - meshes) / 2, 0).reshape(-1, 3)
        moved = flat.copy()
        most = 0.0
        for other, mesh in enumerate(meshes):
            there = near(flat, mesh, self.faces, np.where(structure == other, -np.inf, reach))
            rows = there.rows
            of = structure[rows]
            side = self.sides(other, count)[of]
            away = side[:, None] * there.outward
            distance = side * there.distance
            within = np.bincount(of[distance < 0], minlength=count)
            passed = (distance < -deep_mm) & ((away * normals[rows]).sum(1) > PASSED)
            passed &= (side > 0) & (within < size)[of]  # a mesh all of which lies in the other goes out any way
            away[passed] = -normals[rows[passed]]
            lacking = np.maximum(gaps[rows] - distance, 0)
            most = max(most, lacking.max(initial=0.0))
            moved[rows] += (burdens[of, other] * lacking)[:, None] * away
            towards = np.minimum((smooth[rows] * away).sum(1), 0) * (distance < REACH_MM)
            smooth[rows] -= towards[:, None] * away
        return (moved + smooth).reshape(meshes.shape), most

    def pushed_faces(self, meshes: np.ndarray, burdens: np.ndarray, pairs: np.ndarray) -> np.ndarray:
        """The faces of pairs from two meshes moved as a whole: (S, V, 3).

        Each by its mesh's share, see `shifted`, of what its deepest point lacks.
        """
        size = meshes.shape[1]
        flat = meshes.reshape(-1, 3)
        moved = flat.copy()
        both = np.concatenate([pairs, pairs[:, ::-1]])
        structure, face = np.divmod(both, len(self.faces))
        corners = self.faces[face[:, 0]] + size * structure[:, :1]
        for other in np.unique(structure[structure[:, 0] != structure[:, 1]]).tolist():
            chosen = (structure[:, 1] == other) & (structure[:, 0] != other)
            rows = np.unique(both[chosen, 0], return_index=True)[1]
            own = corners[chosen][rows]
            one = structure[chosen, 0][rows]
            lacking, away = self._deepest(flat[own], one, meshes[other], other)
            order = lacking.argsort(kind="stable")  # each vertex goes with the face that lacks most, as the last
            push = ((burdens[one, other] * lacking)[:, None] * away)[order]
            own = own[order]
            moved[own] = flat[own] + push[:, None]
        return moved.reshape(meshes.shape)

    def _deepest(
        self, triangles: np.ndarray, one: np.ndarray, mesh: np.ndarray, other: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """What the deepest points of triangles (K, 3, 3), of structures `one` (K,), lack of the gap to a mesh (V, 3).

        That is (K,), and the ways out (K, 3); the mesh is that of structure `other`.
        """
        points = np.einsum("lk,fkc->flc", SAMPLES, triangles).reshape(-1, 3)
        side = self.sides(other, len(self.gaps))[one].repeat(len(SAMPLES))
        there = near(points, mesh, self.faces, DEEPEST_MM)
        distance = np.full(len(points), np.inf)
        distance[there.rows] = side[there.rows] * there.distance
        away = np.zeros((len(points), 3))
        away[there.rows] = side[there.rows, None] * there.outward
        deepest = distance.reshape(len(triangles), -1).argmin(1) + np.arange(len(triangles)) * len(SAMPLES)
        gap = self.gaps[one].min(1)
        return np.maximum(gap - distance[deepest], 0), away[deepest]


def _outermost(own: int, outer: Sequence[int | None]) -> int:
    """What encloses a structure and is enclosed by none, or the structure itself."""
    while (around := outer[own]) is not None:
        own = around
    return own


class Crossings:
    """The pairs of faces that cross, of meshes that move step by step: only what moved is looked at again."""

    def __init__(self, scene: Scene):
        self._scene = scene
        self._meshes = np.zeros((0, 0, 3))
        self._pairs = np.zeros((0, 2), dtype=int)

    def of(self, meshes: np.ndarray) -> np.ndarray:
        """See `Scene.crossings`, of meshes (S, V, 3) that are `snapped`."""
        if self._meshes.shape != meshes.shape:
            self._pairs = self._scene.crossings(meshes)
        else:
            moved = (meshes != self._meshes).any(2)
            chosen = moved[:, self._scene.faces].any(2).ravel()
            kept = ~chosen[self._pairs].any(1)
            self._pairs = np.concatenate([self._pairs[kept], self._scene.crossings(meshes, chosen)])
        self._meshes = meshes.copy()
        return self._pairs
