"""What a training keeps on an object store is read by a process on another node, and carries no credentials."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pyarrow.fs
from ray.train import Checkpoint

from pipelines.ray_runtime import train_storage
from sonder.core.storage import Folder
from tests.s3_server import S3Server


def test_a_checkpoint_on_an_object_store_is_read_on_another_node(s3_environment: S3Server, tmp_path: Path) -> None:
    content = os.urandom(9 << 20)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "weights").write_bytes(content)
    storage = train_storage(Folder.at(s3_environment.uri(f"training-{os.urandom(4).hex()}")))
    there, path = storage["storage_filesystem"], f"{storage['storage_path']}/checkpoint_1"
    pyarrow.fs.copy_files(str(tmp_path / "state"), path, destination_filesystem=there)  # as Ray Train uploads it
    told = pickle.dumps(Checkpoint(path, there))
    assert s3_environment.environment["AWS_SECRET_ACCESS_KEY"].encode() not in told
    with pickle.loads(told).as_directory() as directory:  # noqa: S301
        assert (Path(directory) / "weights").read_bytes() == content


def test_on_a_disk_it_is_a_path(tmp_path: Path) -> None:
    assert train_storage(Folder.at(str(tmp_path / "training"))) == {"storage_path": str(tmp_path / "training")}
    assert (tmp_path / "training").is_dir()
