"""A label map as DICOM SEG on its source images, through highdicom (extra `dicom`): the only user of it."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from implicitmeshnet.data.volume import Grid
from implicitmeshnet.script import InputError, atomic_path, reason
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.terms import ANATOMY, Term, term_of

EXTRA = "pip install 'implicitmeshnet[dicom]'"
PROGRAM = "ImplicitMeshNet"
NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID", "SOPClassUID", "FrameOfReferenceUID")
"""What a segmentation says of each image that it was made from."""
LENT = (
    "PatientID",
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "StudyID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
)
"""What may be empty in a DICOM object but must be there, and anonymised files lack."""
SERIES_NUMBER = 900


def check_available(argument: str) -> None:
    """Raise InputError, naming the argument that asks for it, where highdicom is not installed."""
    if find_spec("highdicom") is None or find_spec("pydicom") is None:
        raise InputError(f"{argument}: wanted highdicom to write DICOM SEG, found it not installed ({EXTRA})")


def write_dicom_seg(
    path: Path | str,
    labels: np.ndarray,
    grid: Grid,
    sources: Sequence[Path],
    structures: Structures,
    colours: Sequence[str],
) -> None:
    """Write a label map (X, Y, Z) as DICOM SEG: each structure that is in it a binary segment with a SNOMED code.

    `grid` is the label map's, `sources` are the files of the Z slices of its image, in its order, and `colours` are the
    structures', such as "#e4434b". Raises InputError where the images lack what a segmentation must name, where no
    structure is in the label map, and where the file cannot be written.
    """
    import pydicom

    images = [pydicom.dcmread(source, stop_before_pixels=True) for source in sources]
    for image, source in zip(images, sources, strict=True):
        _complete(image, source)
        # A slice may be thicker than it is far from the next: what is segmented are the voxels between.
        image.SliceThickness = image.SpacingBetweenSlices = float(grid.spacing_mm[2])
    classes = structures.class_map(labels)
    found = [number for number in range(len(structures)) if structures.own(classes, number).any()]
    if not found:
        raise InputError(f"{path}: wanted a structure in the label map for a DICOM SEG, found none")
    segments = np.zeros(structures.class_count + 1, np.uint8)  # the segment's number by class
    for segment, number in enumerate(found, 1):
        segments[structures.class_of(number)] = segment
    frames = segments[classes].transpose(2, 1, 0)  # (Z, Y, X): slices of rows
    descriptions = []
    for segment, number in enumerate(found, 1):
        descriptions.append(_description(segment, structures.names[number], colours[number]))
    try:
        segmentation = _segmentation(images, np.ascontiguousarray(frames), descriptions)
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # what highdicom misses in the images
        raise InputError(
            f"{sources[0]}: wanted a source image for a DICOM SEG, found one that does not do ({reason(error)})"
        ) from error
    with atomic_path(path) as temporary:
        segmentation.save_as(temporary)


def _complete(image: Any, source: Path) -> None:
    """Give an image's header what may be empty; InputError where it lacks what may not."""
    for key in NEEDED:
        if not getattr(image, key, ""):
            raise InputError(f"{source}: wanted {key} in the source image of a DICOM SEG, found none")
    for key in LENT:
        if key not in image:
            setattr(image, key, "")


def _segmentation(images: Sequence[Any], frames: np.ndarray, descriptions: Sequence[Any]) -> Any:
    """The DICOM object of frames (Z, Y, X) that hold segments' numbers, on the images."""
    import highdicom
    from highdicom.seg import Segmentation, SegmentationTypeValues

    return Segmentation(
        source_images=images,
        pixel_array=frames,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=highdicom.UID(),
        series_number=SERIES_NUMBER,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer=PROGRAM,
        manufacturer_model_name=PROGRAM,
        software_versions=_version(),
        device_serial_number="0",
        series_description=f"{PROGRAM} structures",
        content_label="STRUCTURES",
    )


def _description(segment: int, name: str, colour: str) -> Any:
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentAlgorithmTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return SegmentDescription(
        segment_number=segment,
        segment_label=name,
        segmented_property_category=_coded(ANATOMY),
        segmented_property_type=_coded(term_of(name)),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=PROGRAM, version=_version(), family=codes.DCM.ArtificialIntelligence
        ),
        display_color=CIELabColor.from_rgb(red, green, blue),
    )


def _coded(term: Term) -> Any:
    from highdicom.sr import CodedConcept

    return CodedConcept(term.code, "SCT", term.meaning)


def _version() -> str:
    try:
        return version("implicitmeshnet")
    except PackageNotFoundError:  # run from a clone
        return "unknown"
