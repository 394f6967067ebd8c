"""What a submitted command is to do: its arguments as the command itself reads them, its files, its name.

The arguments are parsed here by the command's own parser, so a mistake is told before anything is submitted. The job
runs in another folder, perhaps on another machine: local paths of the configuration and of what is written become
absolute, and a small file that the command reads (seeds, users, consumers) travels with the job.

The same work has the same name: a digest of command, arguments (a file by its content), resolved configuration, code
version, and of what the configuration only points at, as far as it can be seen from here: the files of the log by size
and time of modification, for a command that reads the log, and the hour where it reads what arrives online too; the
served release, for one that reads that.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec

import sonder
from sonder.core.config import SonderConfig, load
from sonder.core.errors import ConfigurationError, DataError, InvalidRequest, SonderError
from sonder.core.ids import digest_json
from sonder.core.workspace import Workspace
from sonder.events.files import find_files
from sonder.events.public_logs import located
from sonder.releases.registry import Registry

READ_THE_LOG = ("build", "prepare", "train", "segment", "cluster", "score", "evaluate", "embed")
READ_A_RELEASE = ("backfill", "repair", "lookalike", "audience refresh", "target", "uplift", "forget", "lifecycle")
COMMANDS = (*READ_THE_LOG, *READ_A_RELEASE)
CONFIG_FILE = "sonder.yaml"  # in the job's folder
MOST_BYTES = 64 << 20  # of a file that travels
CONFIG_FILES = ("consumers",)  # keys of the configuration that name a small file, where it has them
_WRITTEN = ("out", "json_file")  # parameters that name what is written


@dataclass(frozen=True)
class Work:
    """One command with its arguments and its configuration."""

    command: str
    arguments: tuple[str, ...]  # without configuration and overrides; files as they lie in the job's folder
    files: Mapping[str, Path]  # in the job's folder -> here
    config: SonderConfig

    @property
    def words(self) -> list[str]:
        """The command line after `sonder`, in the job's folder."""
        return [*self.command.split(), "--config", CONFIG_FILE, *self.arguments]

    @cached_property
    def content(self) -> dict[str, Any]:
        """The configuration of the job."""
        named = {name: _place(name, file) for name, file in _config_files(self.config).items()}
        return {**absolute_paths(self.config), **named}

    @cached_property
    def name(self) -> str:
        """Of the job's first attempt: the same for the same work."""
        files = {name: hashlib.blake2b(file.read_bytes()).hexdigest() for name, file in self.files.items()}
        identity = {
            "command": self.command,
            "arguments": list(self.arguments),
            "files": files,
            "config": self.content,
            "code": sonder.__version__,
            "log": _log_files(self.config) if self.command in READ_THE_LOG else None,
            "served": _served(self.config) if self.command in READ_A_RELEASE else None,
        }
        return f"sonder-{self.command.replace(' ', '-')}-{digest_json(identity)}"

    def write_files(self, folder: Path) -> None:
        """Copy what travels into the job's folder."""
        for name, file in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / name)


def read_work(words: Sequence[str], config: Path, overrides: Sequence[str] = ()) -> Work:
    """Parse a command line as the command would. `config` and `overrides` count where the line names none itself."""
    command = next((name for name in COMMANDS if tuple(words[: len(name.split())]) == tuple(name.split())), None)
    if command is None:
        raise ConfigurationError(f"Cannot submit {' '.join(words[:2])!r}", expected="one of " + ", ".join(COMMANDS))
    given = ["--config", str(config), *(word for override in overrides for word in ("--set", override))]
    parser, context = _parsed(command, [*given, *words[len(command.split()) :]])
    arguments: list[str] = []
    positional: list[str] = []
    files: dict[str, Path] = {}
    for parameter in parser.params:
        value = context.params.get(parameter.name)
        if parameter.name in ("config", "overrides") or context.get_parameter_source(parameter.name).name == "DEFAULT":
            continue
        values = [_told(parameter, one, files) for one in (value if isinstance(value, list | tuple) else [value])]
        if parameter.param_type_name == "argument":
            positional += [one for one in values if one is not None]
        elif isinstance(value, bool):
            arguments.append(parameter.opts[0] if value else parameter.secondary_opts[0])
        else:
            arguments += [word for one in values if one is not None for word in (parameter.opts[0], one)]
    resolved = load(context.params["config"], context.params["overrides"] or ())
    files |= {_place(name, file): _small(file) for name, file in _config_files(resolved).items()}
    return Work(command, (*arguments, *(("--", *positional) if positional else ())), files, resolved)


def _parsed(command: str, words: list[str]) -> tuple[Any, Any]:
    from typer.main import get_command

    from pipelines.cli import app

    parser: Any = get_command(app)
    for name in command.split():
        parser = parser.commands[name]
    try:
        return parser, parser.make_context(f"sonder {command}", words)
    except Exception as error:  # of the parser; its classes are typer's own affair
        if not hasattr(error, "format_message"):
            raise
        raise InvalidRequest(
            f"`sonder {command}` cannot read these arguments: {error.format_message()}",
            do=f"`sonder {command} --help` lists what it takes; put its own options after `--`.",
        ) from error


def _told(parameter: Any, value: Any, files: dict[str, Path]) -> str | None:
    """A value as the job's command line spells it; a file that is read joins `files`."""
    if value is None:
        return None
    if parameter.name in _WRITTEN:
        return _absolute(str(value))
    if isinstance(value, datetime):
        return value.strftime(parameter.type_descriptor.parameter_info.formats[-1])
    if not isinstance(value, Path):
        return str(value)
    if not value.is_file():
        raise DataError(f"No file at {value}", expected=f"what `{parameter.name}` of the command reads")
    files[_place(parameter.name, value)] = _small(value)
    return _place(parameter.name, value)


def _place(name: str, file: Path) -> str:
    """Of a file in the job's folder."""
    return f"inputs/{name}/{file.name}"


def _small(file: Path) -> Path:
    size_bytes = file.stat().st_size
    if size_bytes > MOST_BYTES:
        raise DataError(
            f"{file} has {size_bytes / 2**20:,.0f} MiB",
            expected=f"a file of {MOST_BYTES / 2**20:.0f} MiB at most: it travels with the job",
            do="Run the command on the cluster itself, or split the list.",
        )
    return file


def _config_files(config: SonderConfig) -> dict[str, Path]:
    """Small files that the configuration names, by key; one that is not there is the job's to complain of."""
    content = config.model_dump()
    named = {name: Path(str(content[name])) for name in CONFIG_FILES if content.get(name)}
    return {name: file for name, file in named.items() if file.is_file()}


def absolute_paths(config: SonderConfig) -> dict[str, Any]:
    """The configuration as plain data, with local paths made absolute: a job has another working directory."""
    content = config.model_dump(mode="json")
    content["workspace"] = _absolute(config.workspace)
    if config.consumers:
        content["consumers"] = _absolute(config.consumers)
    content["events"]["path"] = [_absolute(path) for path in config.events.paths]
    for name in ("items", "users"):
        if content[name]:
            content[name]["path"] = _absolute(content[name]["path"])
    return content


def _absolute(path: str) -> str:
    return path if "://" in path or path.startswith("package:") or path == "auto" else str(Path(path).resolve())


def _log_files(config: SonderConfig) -> list[list[str]] | None:
    """Name, size and age of each file of the log; None where it cannot be seen from here."""
    try:
        found = []
        for file in find_files(located(config.events)):
            fs, path = fsspec.core.url_to_fs(file.source)
            told = fs.info(path)
            changed = next((told[key] for key in ("ETag", "etag", "mtime", "LastModified") if told.get(key)), "")
            found.append([file.source, str(file.size_bytes), str(changed)])
        if config.events.online:  # which always has something new
            found.append(["online", datetime.now(UTC).strftime("%Y-%m-%dT%H")])
        return found
    except (SonderError, OSError, ImportError):
        return None


def _served(config: SonderConfig) -> str | None:
    try:
        current = Registry(Workspace.at(config.workspace)).current()
    except (SonderError, OSError, ImportError):
        return None
    return None if current is None else current.release
