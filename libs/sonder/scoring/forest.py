"""All heads' trees as one xgboost model: one prediction for every score of a batch.

Shapes: U users, F features, O outputs over all boosters (one, or one per label of a multi-label booster).
A call of xgboost costs about a tenth of a millisecond before it reads a tree; ten heads one by one spend more on being
called than on their trees. Here the boosters' own JSON is joined into one model with O targets and the identity as its
objective: the trees are theirs, in their order, and their intercepts are moved to margins. Each output is the same sum
of the same leaves in the same order, so a margin equals its booster's own bit for bit (a property test holds it).
A booster may read fewer columns than the widest one: it reads the first ones.
Limits: `gbtree` with one output per tree and numeric splits, what the heads train; anything else is refused. Rows
decide the number of threads, so a small call does not wake a thread pool.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xgboost
from numpy.typing import NDArray

from sonder.core.errors import ArtefactMismatch

ROWS_PER_THREAD = 64  # xgboost hands out rows in blocks of 64: fewer have no work for a second thread


@dataclass(frozen=True)
class Forest:
    """Made once by `of`, used for every batch; safe to call from several threads at once."""

    one_thread: xgboost.Booster
    all_threads: xgboost.Booster  # the same trees; a booster's number of threads cannot change under a call
    starts: tuple[int, ...]  # [boosters + 1]; outputs of booster b are starts[b]:starts[b + 1]
    num_features: int  # of the widest booster

    @classmethod
    def of(cls, boosters: Sequence[xgboost.Booster], *, num_threads: int = 0) -> Forest:
        """Join boosters (at least one); `num_threads` for large calls, 0 is as many as xgboost finds."""
        if not boosters:
            raise ValueError("no boosters: a forest has at least one")
        models = [_Model.of(booster) for booster in boosters]
        raw = _joined(models)
        return cls(
            one_thread=_load(raw, num_threads=1),
            all_threads=_load(raw, num_threads=num_threads),
            starts=tuple(np.cumsum([0, *[len(model.base_margins) for model in models]]).tolist()),
            num_features=max(model.num_features for model in models),
        )

    @property
    def num_outputs(self) -> int:
        return self.starts[-1]

    def outputs_of(self, booster: int) -> slice:
        """Columns of the margins that belong to one of the boosters, by its place."""
        return slice(self.starts[booster], self.starts[booster + 1])

    def margins(self, features_UF: NDArray[np.float32]) -> NDArray[np.float32]:
        """Raw margin of every output -> [U, O]; columns past those that the boosters read are not looked at.

        Raises ArtefactMismatch for fewer columns than the widest booster reads.
        """
        num_users, width = features_UF.shape
        if width < self.num_features:
            raise ArtefactMismatch(
                f"The scores read {self.num_features} features and got {width}",
                expected="features of the specification that the heads were trained with",
            )
        if num_users == 0:
            return np.zeros((0, self.num_outputs), np.float32)
        booster = self.one_thread if num_users <= ROWS_PER_THREAD else self.all_threads
        margins: NDArray[np.float32] = booster.inplace_predict(
            features_UF[:, : self.num_features], predict_type="margin"
        )
        return margins.reshape(num_users, self.num_outputs)


def single_outputs(booster: xgboost.Booster) -> list[xgboost.Booster]:
    """A booster for each output of a multi-label booster, with that output's trees alone; their margins are its own.

    For explanations, whose price is per tree: a user is asked why about one category and not about all.
    """
    model = _Model.of(booster)
    return [_load(_joined([model.output(place)]), num_threads=0) for place in range(len(model.base_margins))]


@dataclass(frozen=True)
class _Model:
    """What a booster's JSON says, as far as a margin depends on it."""

    content: dict[str, Any]
    trees: list[dict[str, Any]]
    outputs: list[int]  # of each tree
    base_margins: list[np.float32]  # of each output
    num_features: int

    @classmethod
    def of(cls, booster: xgboost.Booster) -> _Model:
        content = json.loads(bytes(booster.save_raw("json")))
        learner = content["learner"]
        name = learner["gradient_booster"]["name"]
        if name != "gbtree":
            raise ValueError(f"a {name!r} booster: only gbtree can be joined")
        model = learner["gradient_booster"]["model"]
        if any(
            tree["tree_param"]["size_leaf_vector"] not in ("0", "1") or any(tree["split_type"])
            for tree in model["trees"]
        ):
            raise ValueError(
                "a booster with vector leaves or categorical splits: only numeric one-output trees can be joined"
            )
        trees, outputs = model["trees"], model["tree_info"]
        return cls(content, trees, outputs, _base_margins(content), booster.num_features())

    def output(self, place: int) -> _Model:
        """The trees of one output, as a model of its own."""
        trees = [tree for tree, output in zip(self.trees, self.outputs, strict=True) if output == place]
        return _Model(self.content, trees, [0] * len(trees), [self.base_margins[place]], self.num_features)


def _base_margins(content: dict[str, Any]) -> list[np.float32]:
    """Margin of each output before its first tree, as xgboost itself computes it from the intercept and its link."""
    learner = content["learner"]
    model = learner["gradient_booster"]["model"]
    width = int(learner["learner_model_param"]["num_feature"])
    # Without trees xgboost says the intercept without its link: one tree of each output stays, its leaves emptied.
    firsts = [model["tree_info"].index(output) for output in range(max(model["tree_info"]) + 1)]
    trees = [
        tree | {"id": place, "split_conditions": [0.0] * len(tree["split_conditions"])}
        for place, tree in enumerate(model["trees"][first] for first in firsts)
    ]
    bare = _load(_with_trees(content, trees, list(range(len(trees)))), num_threads=1)
    return list(bare.inplace_predict(np.zeros((1, width), np.float32), predict_type="margin").ravel())


def _joined(models: Sequence[_Model]) -> dict[str, Any]:
    """One model of all trees, the outputs of a model after those of the one before it."""
    base_margins = [margin for model in models for margin in model.base_margins]
    num_features = max(model.num_features for model in models)
    starts = np.cumsum([0, *[len(model.base_margins) for model in models]]).tolist()
    trees: list[dict[str, Any]] = []
    outputs: list[int] = []
    for start, model in zip(starts, models, strict=False):
        for tree, output in zip(model.trees, model.outputs, strict=True):
            parameters = tree["tree_param"] | {"num_feature": str(num_features)}
            trees.append(tree | {"id": len(trees), "tree_param": parameters})
            outputs.append(start + output)
    template = models[0].content
    learner = template["learner"] | {
        "attributes": {},
        "feature_names": [],
        "feature_types": [],
        "objective": {"name": "reg:squarederror", "reg_loss_param": {"scale_pos_weight": "1"}},
        "learner_model_param": {
            # Nine digits say every float32 exactly.
            "base_score": f"[{','.join(f'{margin:.9g}' for margin in base_margins)}]",
            "boost_from_average": "0",
            "num_class": "0",
            "num_feature": str(num_features),
            "num_target": str(len(base_margins)),
        },
    }
    return _with_trees(template | {"learner": learner}, trees, outputs)


def _with_trees(content: dict[str, Any], trees: list[dict[str, Any]], outputs: list[int]) -> dict[str, Any]:
    """A model with these trees, as one round, in place of its own."""
    gradient_booster = content["learner"]["gradient_booster"]
    model = gradient_booster["model"] | {
        "trees": trees,
        "tree_info": outputs,
        "iteration_indptr": [0, len(trees)],
        "gbtree_model_param": {"num_parallel_tree": "1", "num_trees": str(len(trees))},
    }
    return content | {"learner": content["learner"] | {"gradient_booster": gradient_booster | {"model": model}}}


def _load(content: dict[str, Any], *, num_threads: int) -> xgboost.Booster:
    booster = xgboost.Booster(model_file=bytearray(json.dumps(content).encode()))
    booster.set_param({"nthread": num_threads})
    return booster
