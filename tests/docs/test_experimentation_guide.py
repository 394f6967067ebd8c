"""docs/experimentation.md: its file is an experiment, and its draw, in the words of any language, is the one in use."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import yaml

from sonder.experiments.assignment import Allocation, assign_users
from sonder.experiments.specification import Arm, Experiment, MetricSpec, RampStep, Ranking

PAGE = (Path(__file__).parents[2] / "docs" / "experimentation.md").read_text(encoding="utf-8")
FILE = next(iter(re.findall(r"```yaml\n(.*?)```", PAGE, flags=re.DOTALL)))


def test_the_file_of_the_page_is_an_experiment_with_every_key() -> None:
    content = yaml.safe_load(FILE)
    experiment = Experiment.model_validate(content)
    assert set(content) == set(Experiment.model_fields)
    assert experiment.window_days == 14
    words = set(re.findall(r"(\w+):", FILE))
    for kind in (Arm, MetricSpec, RampStep, Ranking):
        assert set(kind.model_fields) <= words, kind


def draw(key: str, user_id: str) -> float:
    digest = hashlib.blake2b((key + user_id).encode(), digest_size=8).digest()
    return (int.from_bytes(digest[:8], "little") >> 11) * 2.0**-53


def test_the_draws_of_the_page_assign_as_the_library_does() -> None:
    keys = re.findall(r'draw\("(sonder/experiments/\w+/1/)" \+ (?:layer_)?salt', re.sub(r" +", " ", PAGE))
    assert len(keys) == 2
    arms = ("control", "one", "two")
    allocation = Allocation("e", "e", "layer/ranking", 0.25, arms, (1.0, 2.0, 1.0))
    users = [f"user-{number}/ü" for number in range(2_000)]
    expected = []
    for user in users:
        place, chosen = draw(f"{keys[0]}layer/ranking/", user), draw(f"{keys[1]}e/", user)
        arm = "control" if chosen < 0.25 else "one" if chosen < 0.75 else "two"
        expected.append(arm if 0.25 <= place < 0.25 + 0.5 else None)
    assert assign_users(allocation, users, 0.5).to_list() == expected
