"""Trains nnU-Net v2 on the cases of one of our configs, for given minutes on given cores, and measures it as ours.

    pip install nnunetv2
    python benchmarks/nnunet.py --config=configs_implicitmeshnet/hippocampus.json --out=runs/nnunet_hippocampus \\
        --minutes=120 [--threads=1] [--section.key=value ...]

The training cases, and the unseen ones that are measured, are those of a training with the same config. Fingerprint,
plan (3d_fullres of the default planner), preprocessing, network, augmentation, loss and optimiser are nnU-Net's own.
Otherwise than there:

- All training cases are trained on (its fold "all"), without its pseudo validation: the last weights count anyway.
- Its schedule of 250 000 steps is shortened: the poly learning rate follows the elapsed share of the minutes.
- Batches are made in the training process, so that no other cores are used than the given threads.

The minutes are those of training alone; its preprocessing comes before them and is printed. Prediction is its own too,
with mirroring, as by default. The same command goes on where an earlier one was cut off; predictions that are written
are not made again, and the metrics are in metrics.csv.
"""

import argparse
import importlib.util
import os
import random
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from timing import at_least
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from implicitmeshnet.config import Config, load_config
from implicitmeshnet.data.dataset import Case, configured_split, find_cases, read_case, read_labelled
from implicitmeshnet.data.nifti import read_labels, write_volume
from implicitmeshnet.data.volume import Volume
from implicitmeshnet.script import (
    InputError,
    atomic_path,
    keep_freed_memory,
    locked,
    read_json,
    run_script,
    write_json,
    write_table,
)
from implicitmeshnet.structures import Structures
from implicitmeshnet.surfaces.metrics import dice, mean_and_deviation, surface_distances, volume_ml

DATA_SET = "Dataset001_Benchmark"
PLANS = "nnUNetPlans"
CONFIGURATION = "3d_fullres"
FULL_STEPS = 250_000  # 1000 epochs of 250
SAVE_EVERY_S = 300
CHANNELS = {"window": "CT", "percentile": "MR"}
"""What nnU-Net calls images of each data.intensity; it normalises CT by the data set, all else by the volume."""


@dataclass
class Progress:
    """What a training has done."""

    seconds: float = 0.0
    loading_seconds: float = 0.0
    """Of these, for making batches."""
    processor_seconds: float = 0.0
    """Of all cores together; on a busy machine fewer than the threads could have had."""
    steps: int = 0
    gflop_a_step: float = 0.0
    """Of convolutions and products, forward and backward; a multiplication with its addition is two."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="of one of our trainings")
    parser.add_argument("--out", required=True, help="folder for all that is written")
    parser.add_argument("--minutes", type=at_least(1), required=True, help="of training")
    parser.add_argument("--threads", type=at_least(1), default=1)
    arguments, overrides = parser.parse_known_args()
    need_nnunet()
    config = load_config(arguments.config, overrides)
    channel_of(config)
    cases = find_cases(config.data.dir, labelled=True)
    training, unseen = configured_split(cases, config)
    out = Path(arguments.out)
    with locked(out, "--out"):
        keep_to(out, comparison(config, training, arguments.minutes, arguments.threads))
        compare(out, config, training, unseen, arguments.minutes, arguments.threads)


def need_nnunet() -> None:
    """Raise InputError where nnU-Net is not installed."""
    if importlib.util.find_spec("nnunetv2") is None:
        raise InputError("nnunetv2: wanted nnU-Net v2 to compare with, found none (pip install nnunetv2)")


def comparison(config: Config, training: Sequence[Case], minutes: int, threads: int) -> dict[str, Any]:
    """What must stay the same when a run goes on."""
    return {
        "data.dir": config.data.dir,
        "data.structures": config.data.structures,
        "data.intensity": config.data.intensity,
        "training cases": [case.name for case in training],
        "--minutes": minutes,
        "--threads": threads,
    }


def keep_to(out: Path, wanted: dict[str, Any]) -> None:
    """Write down what a folder is for, or raise InputError where it was begun for something else."""
    path = out / "comparison.json"
    if not path.exists():
        write_json(path, wanted)
    begun = read_json(path, "what a comparison was begun with")
    for name, value in wanted.items():
        if begun.get(name) != value:
            raise InputError(f"--out: wanted a folder begun with the same {name}, found another in {path}")


def compare(
    out: Path, config: Config, training: Sequence[Case], unseen: Sequence[Case], minutes: int, threads: int
) -> None:
    """Train, predict and measure, each as far as it is not done; `out` is the folder for all files."""
    structures = Structures.of(config.data)
    use_threads(threads)
    keep_freed_memory()
    set_folders(out)
    write_data_set(out / "nnUNet_raw" / DATA_SET, training, config)
    preparation_s = prepare(out, threads)
    trainer = make_trainer(out)
    progress = train(trainer, out / "checkpoint.pt", 60 * minutes, config.training.seed)
    predict(trainer, unseen, structures, out / "predictions")
    rows = []
    for case in tqdm(unseen, desc="measuring"):
        rows += measure(case, prediction_path(out / "predictions", case), structures)
    write_table(out / "metrics.csv", rows)
    print_plan(trainer)
    print_progress(progress, preparation_s, threads)
    print_summary(rows, structures.names)


def use_threads(threads: int) -> None:
    """Let this process, nnU-Net in it and the processes that it starts use so many threads in all.

    nnU-Net reads these variables when it is imported.
    """
    torch.set_num_threads(threads)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        # Beside one process a thread: nnU-Net prepares cases in processes.
        os.environ[name] = "1"
    os.environ.update(nnUNet_def_n_proc=str(threads), nnUNet_n_proc_DA=str(threads))


def set_folders(out: Path) -> None:
    """Tell nnU-Net, which asks the environment, where its folders are."""
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        os.environ[name] = str(out.absolute() / name)


def write_data_set(folder: Path, cases: Sequence[Case], config: Config) -> None:
    """Write labelled cases as nnU-Net wants them; files that are there are kept.

    Headers are written anew, with sform, qform and pixdim that agree: whichever nnU-Net reads, it sees the spacing that
    we see. Labels are 1 to S in the order of the structures.
    """
    structures = Structures.of(config.data)
    for case in tqdm(cases, desc="writing nnU-Net's data set", unit="case"):
        image_path = folder / "imagesTr" / f"{case.name}_0000.nii.gz"
        label_path = folder / "labelsTr" / f"{case.name}.nii.gz"
        if image_path.exists() and label_path.exists():
            continue
        image, labels = read_labelled(case, config.data)
        write_volume(image_path, image.data, image.grid.affine)
        write_volume(label_path, structures.class_map(labels.data), image.grid.affine)
    write_json(folder / "dataset.json", description(structures, channel_of(config), len(cases)))


def channel_of(config: Config) -> str:
    """What nnU-Net calls the images' channel; InputError where there are several."""
    if config.data.channels > 1:
        raise InputError(f"data.intensity: wanted one rule, for images of one channel, found {config.data.channels}")
    return CHANNELS[config.data.intensity_rules[0]]


def description(structures: Structures, channel: str, cases: int) -> dict[str, Any]:
    """The content of nnU-Net's dataset.json."""
    labels = {"background": 0}
    for structure, name in enumerate(structures.names):
        labels[name] = structures.class_of(structure)
    if structures.ignores:
        labels["ignore"] = structures.ignored_class
    return {"channel_names": {"0": channel}, "labels": labels, "numTraining": cases, "file_ending": ".nii.gz"}


def prepare(out: Path, threads: int) -> float:
    """nnU-Net's fingerprint, plan and preprocessing, unless they are done; the seconds that they took."""
    done = out / "prepared.json"
    if not done.exists():
        from nnunetv2.experiment_planning import plan_and_preprocess_api as api

        begin = time.perf_counter()
        api.extract_fingerprint_dataset(1, num_processes=threads, verbose=False)
        api.plan_experiment_dataset(1)
        api.preprocess_dataset(1, PLANS, (CONFIGURATION,), [threads])
        write_json(done, {"seconds": time.perf_counter() - begin})
    return read_json(done, "the time of a preparation")["seconds"]


def make_trainer(out: Path):
    """nnU-Net's trainer with its network, on the CPU."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    folder = out / "nnUNet_preprocessed" / DATA_SET
    plans = read_json(folder / f"{PLANS}.json", "nnU-Net's plan")
    plans["continue_training"] = False  # its trainer asks for it, for a log that is not written here
    data_set = read_json(folder / "dataset.json", "nnU-Net's data set")
    trainer = nnUNetTrainer(plans, CONFIGURATION, "all", data_set, torch.device("cpu"))
    trainer.initialize()
    return trainer


def train(trainer, checkpoint: Path, seconds: float, seed: int) -> Progress:
    """Train for so many seconds in all, with those of earlier calls; the weights are written and stay in `trainer`."""
    progress = load(trainer, checkpoint)
    if progress.seconds >= seconds:
        return progress
    seed_all(seed + progress.steps)  # a run that goes on draws other batches than it did at first
    os.environ.update(nnUNet_n_proc_DA="0")  # batches are made in this process; the planner wants 1 or more
    batches, _ = trainer.get_dataloaders()
    trainer.network.train()
    saved_s = progress.seconds
    begin = time.perf_counter() - progress.seconds
    begin_processor = time.process_time() - progress.processor_seconds
    while progress.seconds < seconds:
        set_learning_rate(trainer, progress.seconds / seconds)
        loss = take_step(trainer, batches, progress)
        progress.seconds = time.perf_counter() - begin
        progress.processor_seconds = time.process_time() - begin_processor
        if progress.seconds - saved_s >= SAVE_EVERY_S:
            saved_s = progress.seconds
            save(trainer, checkpoint, progress)
            print(f"{progress.seconds:.0f} of {seconds:.0f} s, {progress.steps} steps, loss {loss:.3f}", flush=True)
    save(trainer, checkpoint, progress)
    return progress


def seed_all(seed: int) -> None:
    """nnU-Net draws from all three."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    torch.manual_seed(seed)


def set_learning_rate(trainer, share: float) -> None:
    """nnU-Net's poly rule, of the share of the time that is over instead of the epochs'."""
    for group in trainer.optimizer.param_groups:
        group["lr"] = trainer.initial_lr * (1 - share) ** 0.9


def take_step(trainer, batches, progress: Progress) -> float:
    """One of nnU-Net's steps, its arithmetic counted at the first; the loss."""
    begin = time.perf_counter()
    batch = next(batches)
    progress.loading_seconds += time.perf_counter() - begin
    counter = FlopCounterMode(display=False) if not progress.gflop_a_step else None
    with counter or nullcontext():
        loss = trainer.train_step(batch)["loss"]
    if counter:
        progress.gflop_a_step = counter.get_total_flops() / 1e9
    progress.steps += 1
    return float(loss)


def save(trainer, checkpoint: Path, progress: Progress) -> None:
    """Write all that a training needs to go on."""
    state = {"network": trainer.network.state_dict(), "optimizer": trainer.optimizer.state_dict()}
    with atomic_path(checkpoint) as temporary:
        torch.save(state | {"progress": asdict(progress)}, temporary)


def load(trainer, checkpoint: Path) -> Progress:
    """Bring a trainer to where a checkpoint is; to the beginning where there is none."""
    if not checkpoint.exists():
        return Progress()
    state = torch.load(checkpoint, weights_only=True)
    trainer.network.load_state_dict(state["network"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    return Progress(**state["progress"])


def prediction_path(folder: Path, case: Case) -> Path:
    return folder / f"{case.name}.nii.gz"


def predict(trainer, cases: Sequence[Case], structures: Structures, folder: Path) -> None:
    """Write a label map, in the config's label values, of each case that has none in the folder yet."""
    missing = [case for case in cases if not prediction_path(folder, case).exists()]
    predictor = make_predictor(trainer)
    begin = time.perf_counter()
    for case in tqdm(missing, desc="predicting"):
        image, _ = read_case(case)
        labels = structures.label_map(segment(predictor, image))
        write_volume(prediction_path(folder, case), labels, image.grid.affine, image.grid.header)
    if missing:
        print(f"prediction with mirroring: {(time.perf_counter() - begin) / len(missing):.1f} s a case")


def make_predictor(trainer):
    """nnU-Net's predictor with its defaults, and the weights as they are in the trainer."""
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    trainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size()  # sets the axes to mirror
    trainer.set_deep_supervision_enabled(False)
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.manual_initialization(
        trainer.network,
        trainer.plans_manager,
        trainer.configuration_manager,
        [trainer.network.state_dict()],
        trainer.dataset_json,
        type(trainer).__name__,
        trainer.inference_allowed_mirroring_axes,
    )
    return predictor


def segment(predictor, image: Volume) -> np.ndarray:
    """The class map (X, Y, Z) of an image, which nnU-Net wants as its reader gives it: (1, Z, Y, X)."""
    spacing_mm = image.grid.spacing_mm[::-1].tolist()
    classes = predictor.predict_single_npy_array(image.data.T[None], {"spacing": spacing_mm})
    return classes.T


def measure(case: Case, prediction: Path, structures: Structures) -> list[dict[str, Any]]:
    """A row per structure, on the image's own grid."""
    image, labels = read_case(case)
    assert labels is not None, "find_cases was asked for labelled cases"
    predicted = read_labels(prediction).data
    ignored = structures.ignored_in(labels.data)
    rows = []
    for structure, name in enumerate(structures.names):
        mask = predicted == structures.written[name]
        truth = structures.mask(labels.data, structure)
        row = {"case": case.name, "structure": name, "dice": dice(mask, truth, ignored)}
        row |= surface_distances(mask, truth, image.grid, ignored)
        rows.append(row | {"label_volume_ml": volume_ml(truth, image.grid), "volume_ml": volume_ml(mask, image.grid)})
    return rows


def print_plan(trainer) -> None:
    """What nnU-Net planned; axes in its own order, which is not always the files'."""
    plan = trainer.configuration_manager
    weights = sum(parameter.numel() for parameter in trainer.network.parameters())
    spacing_mm = " x ".join(f"{number:.4g}" for number in plan.spacing)
    stages = plan.network_arch_init_kwargs["features_per_stage"]
    print(f"\nplan: patch {' x '.join(map(str, plan.patch_size))}, batch {plan.batch_size}, spacing {spacing_mm} mm")
    print(
        f"network: {len(stages)} stages of {' '.join(map(str, stages))} channels, {weights / 1e6:.1f} million weights"
    )


def print_progress(progress: Progress, preparation_s: float, threads: int) -> None:
    """What the training did of nnU-Net's full schedule, and what it cost."""
    steps = progress.steps
    seconds = progress.seconds / steps
    batch_seconds = progress.loading_seconds / steps
    share = progress.processor_seconds / progress.seconds
    print(
        f"training: {progress.seconds / 60:.1f} min with threads {threads} ({share:.2f} cores busy), after"
        f" {preparation_s:.0f} s of preparation: {steps} of {FULL_STEPS} steps ({100 * steps / FULL_STEPS:.2g} %),"
        f" {seconds:.2f} s a step, {batch_seconds:.2f} s of it for its batch"
    )
    print(
        f"arithmetic: {progress.gflop_a_step:.0f} GFLOP a step, {progress.gflop_a_step * steps / 1e3:.0f} TFLOP in all"
    )


def print_summary(rows: Sequence[dict[str, Any]], structures: Sequence[str]) -> None:
    """Mean and standard deviation per structure over the cases in which it is labelled, as our evaluation prints."""
    print(f"\n{'structure':<16}{'cases':>6}{'Dice':>17}{'ASSD_mm':>20}{'HD95_mm':>20}")
    for name in structures:
        labelled = [row for row in rows if row["structure"] == name and row["label_volume_ml"]]
        line = f"{name:<16}{len(labelled):>6}"
        for key, width in (("dice", 17), ("assd_mm", 20), ("hd95_mm", 20)):
            line += f"{mean_and_deviation([row[key] for row in labelled]):>{width}}"
        print(line)


if __name__ == "__main__":
    run_script(main)
