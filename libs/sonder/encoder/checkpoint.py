"""The state of a training run between two epochs, as safetensors + JSON: enough to go on as if nothing had happened."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from safetensors.torch import load, save
from torch import Tensor

from sonder.core.storage import Folder
from sonder.encoder.artefact import Encoder
from sonder.encoder.specification import EncoderSpec

STATE_FILE = "state.safetensors"
PROGRESS_FILE = "state.json"
CHOOSES = "ndcg_at_10"  # the validation metric that picks the best epoch


@dataclass
class Progress:
    """How far a run is, and how it went."""

    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best_epoch: int = 0
    best_value: float = -1.0
    history: list[dict[str, float]] = field(default_factory=list)  # one entry an epoch

    def add(self, loss: float, metrics: dict[str, float], seconds: float) -> bool:
        """Note an epoch; True if it is the best so far. Without validation the newest is the best."""
        self.epoch += 1
        self.seconds += seconds
        self.history.append({"epoch": self.epoch, "loss": loss, "seconds": round(seconds, 2), **metrics})
        if metrics and metrics[CHOOSES] <= self.best_value:
            return False
        self.best_epoch, self.best_value = self.epoch, metrics.get(CHOOSES, -1.0)
        return True


@dataclass(frozen=True)
class TrainingState:
    spec: EncoderSpec
    progress: Progress
    tensors: dict[str, Tensor]  # model.*, average.*, best.*, adam.<moment>.*, trained_items, popularity
    half_life_us: int = 0  # of the popularity

    def part(self, prefix: str) -> dict[str, Tensor]:
        """Tensors whose names start with the prefix, without it."""
        return {name[len(prefix) :]: tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}

    def encoder(self) -> Encoder:
        """The best weights so far as an encoder."""
        return Encoder.of(
            self.spec,
            self.part("best."),
            self.tensors["trained_items"].numpy(),
            popularity=self.tensors["popularity"].numpy(),
            half_life_us=self.half_life_us,
        )


def save_state(state: TrainingState, folder: Folder) -> None:
    content = {name: tensor.detach().contiguous() for name, tensor in state.tensors.items()}
    (folder / STATE_FILE).write_bytes(save(content))
    (folder / PROGRESS_FILE).write_json(
        {"spec": state.spec.to_dict(), "progress": asdict(state.progress), "half_life_us": state.half_life_us}
    )


def load_state(folder: Folder) -> TrainingState:
    content = (folder / PROGRESS_FILE).read_json()
    tensors = load((folder / STATE_FILE).read_bytes())
    return TrainingState(
        EncoderSpec.from_dict(content["spec"]), Progress(**content["progress"]), tensors, content["half_life_us"]
    )
