"""The state of a training run between two steps, as safetensors + JSON: enough to go on as if nothing had happened."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from sonder.core.storage import Folder
from sonder.encoder.artefact import Encoder
from sonder.encoder.content import ItemContent
from sonder.encoder.specification import EncoderSpec

STATE_FILE = "state.safetensors"
PROGRESS_FILE = "state.json"
FOR_ENCODER = ("best.", "trained_items", "popularity")
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
    step_of_epoch: int = 0  # steps that are done of the epoch that is not
    loss: float = 0.0  # summed over them; once saved, the mean over the workers
    epoch_seconds: float = 0.0

    @property
    def total_seconds(self) -> float:
        return self.seconds + self.epoch_seconds

    def add(self, loss: float, metrics: dict[str, float]) -> bool:
        """Note the end of an epoch; True if it is the best so far. Without validation the newest is the best."""
        self.epoch += 1
        self.seconds += self.epoch_seconds
        self.history.append({"epoch": self.epoch, "loss": loss, "seconds": round(self.epoch_seconds, 2), **metrics})
        self.epoch_seconds = 0.0
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

    def encoder(self, content: ItemContent | None = None) -> Encoder:
        """The best weights so far as an encoder; `content` of the items that they were trained with."""
        return Encoder.of(
            self.spec,
            self.part("best."),
            self.tensors["trained_items"].numpy(),
            content=content,
            popularity=self.tensors["popularity"].numpy(),
            half_life_us=self.half_life_us,
        )


def save_state(state: TrainingState, folder: Folder) -> None:
    """Write both files into a local folder, straight from the tensors' memory."""
    folder.fs.makedirs(folder.path, exist_ok=True)
    content = {name: tensor.detach().cpu().contiguous() for name, tensor in state.tensors.items()}
    save_file(content, (folder / STATE_FILE).path)
    (folder / PROGRESS_FILE).write_json(
        {"spec": state.spec.to_dict(), "progress": asdict(state.progress), "half_life_us": state.half_life_us}
    )


def load_state(folder: Folder, *, only: tuple[str, ...] = ("",)) -> TrainingState:
    """Read both files of a local folder; `only` the tensors whose names start so (FOR_ENCODER: the best weights)."""
    content = (folder / PROGRESS_FILE).read_json()
    with safe_open((folder / STATE_FILE).path, framework="pt") as file:
        names = [name for name in file.keys() if name.startswith(only)]  # noqa: SIM118 (it is no mapping)
        tensors = {name: file.get_tensor(name) for name in names}
    return TrainingState(
        EncoderSpec.from_dict(content["spec"]), Progress(**content["progress"]), tensors, content["half_life_us"]
    )
