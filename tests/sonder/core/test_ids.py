"""Digests are the same everywhere, forever: history buckets and event keys are made of them."""

from __future__ import annotations

import hashlib

import numpy as np
import polars as pl

from sonder.core.ids import bucket_of, digest_json, stable_hash, unit_draw, unit_interval


def test_the_digest_is_the_published_xxh64() -> None:
    # XXH64 of the empty input with seed 0, from the xxHash specification.
    assert int(stable_hash(pl.Series([""]), key="")[0]) == 0xEF46DB3751D8E999


def test_keys_and_ids_do_not_run_into_each_other_within_one_key() -> None:
    hashes = stable_hash(pl.Series(["u1", "u2", "u1"]), key="k/")
    assert hashes[0] == hashes[2] != hashes[1]
    assert stable_hash(pl.Series(["u1"]), key="other/")[0] != hashes[0]


def test_buckets_stay_where_they_are() -> None:
    # From the reference implementation: xxhash.xxh64("sonder/bucket/1/" + id) % 64.
    assert bucket_of(pl.Series(["u0000001", "Ünïcode", ""]), 64).tolist() == [53, 30, 45]


def test_buckets_and_draws_are_uniform() -> None:
    ids = pl.Series([f"user-{i}" for i in range(20_000)])
    counts = np.bincount(bucket_of(ids, 20), minlength=20)
    assert counts.min() > 850
    assert counts.max() < 1_150
    draws = unit_interval(ids, key="test/")
    assert 0 <= draws.min() < 0.001 < 0.999 < draws.max() < 1
    assert abs(draws.mean() - 0.5) < 0.01


def test_json_digests_ignore_the_order_of_keys() -> None:
    assert digest_json({"a": 1, "b": 2}) == digest_json({"b": 2, "a": 1}) != digest_json({"a": 1, "b": 3})


def test_a_draw_of_one_id_is_the_same_everywhere_uniform_and_independent_between_keys() -> None:
    ids = [f"user-{i}" for i in range(20_000)]
    one, other = (np.array([unit_draw(key)(user) for user in ids]) for key in ("a/", "b/"))
    assert 0 <= one.min() < 0.001 < 0.999 < one.max() < 1
    assert abs(one.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(one, other)[0, 1]) < 0.03
    # hashlib.blake2b(b"a/" + id, digest_size=8), the first 53 bits of it read little-endian.
    expected = int.from_bytes(hashlib.blake2b("a/Ünïcode".encode(), digest_size=8).digest(), "little") >> 11
    assert unit_draw("a/")("Ünïcode") == expected / 2**53
