"""What several test files build their cases of."""

from implicitmeshnet.structures import Structures


def structures_of(
    *values: int | tuple[int, ...],
    encloses: dict[int, tuple[int, ...]] | None = None,
    ignore: tuple[int, ...] = (),
) -> Structures:
    """Structures "S0", "S1", ... with these label values; `encloses` says, by number, who holds whom."""
    groups = tuple(value if isinstance(value, tuple) else (value,) for value in values)
    names = tuple(f"S{number}" for number in range(len(groups)))
    held = tuple((encloses or {}).get(number, ()) for number in range(len(groups)))
    return Structures(names, groups, held, ignore)
