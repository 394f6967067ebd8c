"""The instructions of a Dockerfile, and what a .dockerignore lets through. Whether it is valid, hadolint says."""

from __future__ import annotations

import fnmatch
import re
import shlex
from pathlib import Path
from typing import NamedTuple


class Instruction(NamedTuple):
    name: str
    flags: dict[str, str]
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)


class Stage(NamedTuple):
    name: str
    base: str
    instructions: list[Instruction]


def read_stages(text: str) -> tuple[dict[str, str], list[Stage]]:
    """Arguments before the first FROM with their defaults, and the stages in order."""
    arguments: dict[str, str] = {}
    stages: list[Stage] = []
    for name, flags, rest in _instructions(text):
        if name == "FROM":
            base, _, alias = rest.partition(" AS ")
            stages.append(Stage(alias, base, []))
        elif stages:
            stages[-1].instructions.append(Instruction(name, flags, rest))
        else:
            assert name == "ARG"
            key, _, value = rest.partition("=")
            arguments[key] = value
    return arguments, stages


def _instructions(text: str) -> list[Instruction]:
    lines = [line for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]
    found = []
    for whole in re.sub(r"\\\n\s*", " ", "\n".join(lines)).splitlines():
        name, _, rest = whole.strip().partition(" ")
        flags = {}
        while match := re.match(r"--([\w-]+)=(\S+)\s+", rest):
            flags[match[1]] = match[2]
            rest = rest[match.end() :]
        found.append(Instruction(name, flags, rest.strip()))
    return found


def is_sent(path: str, rules: list[str]) -> bool:
    """Whether a file of the context reaches the builder: the last rule that matches it or a folder above it decides."""
    sent = True
    parts = path.split("/")
    above = ["/".join(parts[: count + 1]) for count in range(len(parts))]
    for rule in rules:
        pattern = rule.removeprefix("!")
        if any(fnmatch.fnmatch(one, pattern) or _anywhere(one, pattern) for one in above):
            sent = rule.startswith("!")
    return sent


def _anywhere(path: str, pattern: str) -> bool:
    return pattern.startswith("**/") and fnmatch.fnmatch(path.split("/")[-1], pattern[3:])


def ignore_rules(file: Path) -> list[str]:
    lines = file.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]
