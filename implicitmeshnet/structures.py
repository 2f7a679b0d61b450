"""The structures of a config: their names, label values, and which of them a mesh holds beside its own.

The only place that knows how they are numbered. Structure s of S is counted from 0 in every list and along every
structure axis. In a class map, and among the classes of a segmentation, 0 is background and s + 1 is structure s. What
is ignored, because nothing is known of it, is class S + 1 of a class map; no segmentation has that class.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from implicitmeshnet.config import DataConfig
from implicitmeshnet.script import InputError, shorten

Array = TypeVar("Array")
"""A numpy array or a torch tensor: what is asked of both here, both can do."""
Number = TypeVar("Number", int, np.ndarray)


@dataclass(frozen=True)
class Structures:
    """S structures; the tuples run along the structure axis."""

    names: tuple[str, ...]
    values: tuple[tuple[int, ...], ...]
    """The label values that mean each structure; the first is the one that is written."""
    encloses: tuple[tuple[int, ...], ...]
    """Of each structure, which others its mesh holds beside its own, as the epicardium holds the left ventricle."""
    ignore: tuple[int, ...] = ()
    """The label values of voxels that are ignored."""
    ignores_outside: bool = False
    """Whether what lies beyond the volume's border is ignored too."""

    @classmethod
    def of(cls, data: DataConfig) -> "Structures":
        """Those of a config, in its order."""
        names = tuple(data.structures)
        values = tuple(map(tuple, data.structures.values()))
        encloses = []
        for name in names:
            inner = data.encloses.get(name, ())
            encloses.append(tuple(map(names.index, inner)))
        return cls(names, values, tuple(encloses), tuple(data.ignore), data.outside_view == "ignored")

    def chosen(self, names: Sequence[str]) -> "Structures":
        """Those of some names, in their own order. Raises InputError for a name that none has."""
        for name in names:
            if name not in self.names:
                raise InputError(f"structures: wanted some of {', '.join(self.names)}, found {shorten(repr(name))}")
        kept = [number for number, name in enumerate(self.names) if name in names]
        encloses = []
        for number in kept:
            inner = [kept.index(other) for other in self.encloses[number] if other in kept]
            encloses.append(tuple(inner))
        return Structures(
            tuple(self.names[number] for number in kept),
            tuple(self.values[number] for number in kept),
            tuple(encloses),
            self.ignore,
            self.ignores_outside,
        )

    def __len__(self) -> int:
        return len(self.names)

    @property
    def ignores(self) -> bool:
        """Whether a class map may have ignored voxels."""
        return bool(self.ignore) or self.ignores_outside

    @property
    def class_count(self) -> int:
        """Background and each structure: those of a segmentation."""
        return len(self) + 1

    @property
    def ignored_class(self) -> int:
        """The class that ignored voxels have in a class map."""
        return len(self) + 1

    @property
    def label_values(self) -> list[int]:
        """The label values of all structures, rising."""
        return sorted(value for group in self.values for value in group)

    @cached_property
    def written(self) -> dict[str, int]:
        """The label value that is written for each structure, by name."""
        return {name: group[0] for name, group in zip(self.names, self.values, strict=True)}

    def class_map(self, labels: np.ndarray) -> np.ndarray:
        """The class of each voxel of a label map: uint8, in the label map's shape."""
        classes = np.zeros_like(labels, np.uint8)  # in the same memory order, which is most of the speed
        for structure, group in enumerate(self.values):
            for value in group:
                classes[labels == value] = self.class_of(structure)
        for value in self.ignore:
            classes[labels == value] = self.ignored_class
        return classes

    def label_map(self, classes: np.ndarray) -> np.ndarray:
        """The label value to write for each voxel of a class map of any integer type: int16, in its shape.

        None of its voxels is ignored.
        """
        return np.array([0, *self.written.values()], dtype=np.int16)[classes]

    def class_of(self, structure: Number) -> Number:
        """The class of a structure, or the classes of an array of them."""
        return structure + 1

    def own(self, classes: Array, structure: int) -> Array:
        """Where a class map is a structure: bool, in its shape."""
        return classes == self.class_of(structure)  # type: ignore[return-value]

    def held(self, classes: Array, structure: int) -> Array:
        """Where a class map is what a structure's mesh holds, its own and what it encloses: bool, in its shape."""
        held = self.own(classes, structure)
        for inner in self.encloses[structure]:
            held = held | self.own(classes, inner)  # type: ignore[operator]
        return held

    def ignored(self, classes: Array) -> Array:
        """Where a class map is ignored: bool, in its shape."""
        return classes == self.ignored_class  # type: ignore[return-value]

    def ignored_in(self, labels: np.ndarray) -> np.ndarray | None:
        """Where a label map has an ignored value: bool, in its shape; None where no values are ignored."""
        return _any_of(labels, self.ignore) if self.ignore else None

    def counts(self, classes: np.ndarray) -> np.ndarray:
        """How many voxels of a class map are each structure's own: int (S,)."""
        return np.bincount(classes.ravel(), minlength=self.class_count)[1 : self.class_count]

    def written_alone(self, labels: np.ndarray) -> np.ndarray:
        """A label map of written values without those of other structures, which become 0; of the same type."""
        return np.where(np.isin(labels, list(self.written.values())), labels, labels.dtype.type(0))

    def mask(self, labels: np.ndarray, structure: int) -> np.ndarray:
        """Where a label map has one of a structure's values: bool, in its shape."""
        return _any_of(labels, self.values[structure])

    def present_in(self, labels: np.ndarray) -> list[str]:
        """The names of the structures that a label map has."""
        return [name for structure, name in enumerate(self.names) if self.mask(labels, structure).any()]

    def any_in(self, labels: np.ndarray) -> bool:
        """Whether a label map has any structure's value."""
        return any(self.mask(labels, structure).any() for structure in range(len(self)))

    def own_parts(self, masks: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Masks (X, Y, Z) bool of what the meshes hold -> each structure's own part, without those that it encloses."""
        parts = []
        for mask, enclosed in zip(masks, self.encloses, strict=True):
            part = mask.copy()
            for inner in enclosed:
                part &= ~masks[inner]
            parts.append(part)
        return parts


def _any_of(labels: np.ndarray, values: Sequence[int]) -> np.ndarray:
    """Where a label map has one of some values: bool, in its shape; 20 times as fast as np.isin."""
    first, *others = values
    found = labels == first
    for value in others:
        found |= labels == value
    return found
