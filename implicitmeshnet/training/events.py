"""TensorBoard's records of a run, written by this thread and at once.

torch's SummaryWriter writes in a thread of its own, which meets a full disk with a traceback and loses what it had not
written when the process is killed, and it takes no folder whose name is not UTF-8.
"""

import io
import os
import time
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from implicitmeshnet.script import HOST, InputError, reason

RGBA = 4  # as an image's colour space in TensorBoard


class EventFile:
    """A file of records beside those of earlier processes. InputError where it cannot be written."""

    def __init__(self, run_dir: Path, epochs: int):
        """After `epochs` finished epochs: what earlier processes recorded of later ones is no longer shown."""
        self.path = run_dir / f"events.out.tfevents.{time.time():.6f}.{HOST}.{os.getpid()}"
        self._write(Event(file_version="brain.Event:2"))
        self._write(Event(step=epochs + 1, session_log=SessionLog(status=SessionLog.START)))

    def add_scalar(self, tag: str, value: float, epoch: int):
        self._write(Event(step=epoch, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)])))

    def add_figure(self, tag: str, figure, epoch: int):
        """A matplotlib figure as a picture."""
        png = io.BytesIO()
        figure.savefig(png, format="png")
        width, height = figure.canvas.get_width_height()
        image = Summary.Image(encoded_image_string=png.getvalue(), width=width, height=height, colorspace=RGBA)
        self._write(Event(step=epoch, summary=Summary(value=[Summary.Value(tag=tag, image=image)])))

    def _write(self, event: Event):
        event.wall_time = time.time()
        try:
            with self.path.open("ab") as file:
                RecordWriter(file).write(event.SerializeToString())
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({reason(error)})") from error
