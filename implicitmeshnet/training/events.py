"""TensorBoard's records of a run, written to the file at once by the thread that asks for it.

torch's SummaryWriter writes in a thread of its own. Where the disk is full that thread ends with a traceback, and
where the process is killed it loses what it had not written yet. It also refuses a folder whose name is not UTF-8.
"""

import io
import os
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from implicitmeshnet.script import HOST, InputError, reason
from implicitmeshnet.surfaces.figures import Figure

RGBA = 4  # as an image's colour space in TensorBoard


class EventFile:
    """The records of one process, in a file of their own beside those of earlier processes.

    Every method raises InputError where the file cannot be written.
    """

    def __init__(self, run_dir: Path, epochs: int) -> None:
        """Begin a file in `run_dir` after `epochs` finished epochs.

        TensorBoard no longer shows what earlier processes recorded of later epochs, which this one repeats.
        """
        name = f"events.out.tfevents.{time.time():.6f}.{HOST}.{os.getpid()}"
        self.path = run_dir / name
        self._write(Event(file_version="brain.Event:2"))
        start = SessionLog(status=SessionLog.START)
        self._write(Event(step=epochs + 1, session_log=start))

    def add_scalar(self, tag: str, value: float, epoch: int) -> None:
        """Record a number under a tag: one point of a curve over the epochs."""
        self._write_value(Summary.Value(tag=tag, simple_value=value), epoch)

    def add_figure(self, tag: str, figure: Figure, epoch: int) -> None:
        """Record a matplotlib figure as a picture."""
        png = io.BytesIO()
        figure.savefig(png, format="png")
        width, height = figure.canvas.get_width_height()
        image = Summary.Image(encoded_image_string=png.getvalue(), width=width, height=height, colorspace=RGBA)
        self._write_value(Summary.Value(tag=tag, image=image), epoch)

    def _write_value(self, value: Summary.Value, epoch: int) -> None:
        self._write(Event(step=epoch, summary=Summary(value=[value])))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        record = event.SerializeToString()
        try:
            with self.path.open("ab") as file:
                RecordWriter(file).write(record)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({reason(error)})") from error
