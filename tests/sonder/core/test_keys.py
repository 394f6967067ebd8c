"""API keys: shown once, kept as digests, refused when revoked."""

from __future__ import annotations

from pathlib import Path

import pytest

from sonder.core.errors import InvalidRequest, NotFound
from sonder.core.keys import create_key, find_key, read_keys, revoke_key
from sonder.core.storage import Folder


@pytest.fixture
def file(tmp_path: Path) -> Folder:
    return Folder.at(str(tmp_path / "keys.json"))


def test_a_key_is_found_by_itself_alone_and_stands_in_no_file(file: Folder, tmp_path: Path) -> None:
    assert read_keys(file) == {}
    ads, feed = (
        create_key(file, "ads", scopes=["read"], fields=["segments"]),
        create_key(file, "feed", scopes=["admin"]),
    )
    keys = read_keys(file)
    found = find_key(keys, ads)
    assert found is not None
    assert (found.name, found.fields, found.may("read"), found.may("write")) == ("ads", ("segments",), True, False)
    assert [key.may("write") for key in keys.values() if key.name == "feed"] == [True]
    for wrong in ("", "sk", "sk_", ads[:-1], f"{ads}x", ads.upper(), f"sk_{'0' * 8}_{ads[12:]}", feed[:11] + ads[11:]):
        assert find_key(keys, wrong) is None
    assert ads[12:] not in (tmp_path / "keys.json").read_text()
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0


def test_a_revoked_key_is_gone_and_its_name_is_free(file: Folder) -> None:
    secret = create_key(file, "ads", scopes=["read"])
    with pytest.raises(InvalidRequest, match="already"):
        create_key(file, "ads", scopes=["read"])
    revoke_key(file, "ads")
    assert find_key(read_keys(file), secret) is None
    again = create_key(file, "ads", scopes=["write"])
    assert find_key(read_keys(file), again) is not None
    with pytest.raises(NotFound):
        revoke_key(file, "feed")


@pytest.mark.parametrize("arguments", [{"scopes": []}, {"scopes": ["root"]}, {"scopes": ["read"], "rate": 0}])
def test_a_key_without_sense_is_refused(file: Folder, arguments: dict[str, list[str]]) -> None:
    with pytest.raises(InvalidRequest):
        create_key(file, "ads", **arguments)  # type: ignore[arg-type]
    assert read_keys(file) == {}
