"""The values of tissue maps: what every voxel of a synthetic patient is made of, whatever a scanner would show of it.

The phantom writes them as NAME_tissues.nii.gz, uint8, and random appearance gives each value a brightness of its own.
This table is their only home; docs/phantom.md shows it.
"""

from enum import IntEnum


class Tissue(IntEnum):
    """A value of a tissue map."""

    AIR = 0
    """Around the body."""
    TABLE_FOAM = 1
    TABLE_SHELL = 2
    SKIN = 3
    FAT = 4
    """Under the skin, in the mediastinum and on the heart."""
    MUSCLE = 5
    """Of the chest's wall and the back, with cartilage, discs and the oesophagus."""
    BONE = 6
    """Cortical."""
    MARROW = 7
    LUNG = 8
    LUNG_VESSEL = 9
    DIAPHRAGM = 10
    """And what lies between the organs below it."""
    STOMACH = 11
    SPLEEN = 12
    LIVER = 13
    AIRWAY_WALL = 14
    AIRWAY = 15
    """The air in windpipe and bronchi."""
    WALL = 16
    """Of atria, right ventricle and vessels, and trabeculae."""
    LEFT_VESSEL = 17
    """Blood of the left heart outside the labels: arch and descending aorta, pulmonary veins, coronary arteries."""
    RIGHT_VESSEL = 18
    """Blood of the right heart outside the labels: venae cavae, pulmonary arteries within the lungs."""
    MYOCARDIUM = 19
    """Of the left ventricle, and its papillary muscles."""
    LV = 20
    RV = 21
    LA = 22
    RA = 23
    AO = 24
    PA = 25
    """Values 20 to 25 are the blood in the labelled chambers and vessels."""


BLOOD_OF = {name: Tissue[name] for name in ("LV", "RV", "LA", "RA", "AO", "PA")}
"""The blood in each labelled structure of this name."""
