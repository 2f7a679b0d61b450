"""What each structure is called in SNOMED CT, the codes by which other programs know it."""

from typing import NamedTuple


class Term(NamedTuple):
    """A concept of SNOMED CT."""

    code: str
    meaning: str


ANATOMY = Term("123037004", "Anatomical Structure")
"""The category of every segment, and what a structure is called of which nothing else is known."""
TERMS = {
    "LV": Term("87878005", "Left ventricle of heart"),
    "RV": Term("53085002", "Right ventricle of heart"),
    "LA": Term("82471001", "Left atrium"),
    "RA": Term("73829009", "Right atrium"),
    "Myo": Term("74281007", "Myocardium"),
    "AO": Term("15825003", "Aorta"),
    "PA": Term("81040000", "Pulmonary artery"),
}
"""By the names that the whole-heart configs use."""


def term_of(structure: str) -> Term:
    """The concept of a structure by its name; the general one for a name that is not known."""
    return TERMS.get(structure, ANATOMY)
