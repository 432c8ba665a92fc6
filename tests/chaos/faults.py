"""What is to go wrong on the devices of a service, said in files of a folder, which engines look at."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POISON = "WWWWWWWWWW"  # a sequence that holds this makes the model fail
FOLDER = "FAULTS_DIR"  # variables of the service
NUM_DEVICES = "FAULTS_NUM_DEVICES"
IS_IMPATIENT = "FAULTS_IS_IMPATIENT"  # set: a device hangs after seconds, and for good soon after


@dataclass(frozen=True)
class Faults:
    """Nothing is wrong while the folder is empty."""

    folder: Path

    @property
    def hold(self) -> Path:
        """While it exists, no batch is begun."""
        return self.folder / "hold"

    @property
    def memory(self) -> Path:
        """Holds how many sequences a device has memory for."""
        return self.folder / "memory"

    def loss(self, device: int) -> Path:
        """The device is lost with the next batch, and takes this file along: in a new process it is well."""
        return self.folder / f"loss-{device}"

    def clear(self) -> None:
        for path in self.folder.iterdir():
            path.unlink()
