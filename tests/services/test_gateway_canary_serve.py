"""A canary on Ray Serve, under load: started, compared, rolled back and promoted without a failed request."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import grpc
import httpx
import pytest
from ray import serve

from services.gateway.proxy import free_ports
from services.gateway.rpc.sonder_pb2 import GetProfileRequest, Profile
from services.gateway.start import started
from sonder.profiles.record import iso_time
from sonder.releases.canary import Canaries, Limits
from sonder.releases.canary_counts import Counts, Tally, latency_bin, read_counts, slot_of, write_counts

if TYPE_CHECKING:
    from conftest import TinyRelease

pytestmark = [pytest.mark.ray, pytest.mark.slow]
ON_THEIR_WAY_S = 2.0  # requests that the readers sent before every gateway had heard of the canary
PATHS = ("", "", "", "?fresh=true", "/recommendations?k=3")


@pytest.fixture(scope="module")
def tiny_release(
    new_release: Callable[[], TinyRelease], another_release: Callable[[TinyRelease, str], str]
) -> TinyRelease:
    release = new_release()
    for name in ("release-2", "release-3"):
        another_release(release, name)
    return release


@pytest.fixture(scope="module")
def ports(ray_session: None, tiny_release: TinyRelease) -> Iterator[tuple[str, int]]:
    http, rpc = free_ports(2)
    with started(tiny_release.workspace.root.uri, port=http, grpc={"host": "127.0.0.1", "port": rpc}) as url:
        yield url, rpc
    serve.shutdown()


class Load:
    """Readers that never pause; what they were answered, by user and release."""

    def __init__(self, url: str, users: list[str]) -> None:
        self.statuses: Counter[int] = Counter()
        self.read: Counter[tuple[str, str]] = Counter()
        self._url, self._users, self._ends = url, users, threading.Event()

    def run(self) -> None:
        with httpx.Client(base_url=self._url, trust_env=False, timeout=30) as http:
            turn = 0
            while not self._ends.is_set():
                turn += 1
                user = self._users[turn % len(self._users)]
                answer = http.get(f"/v1/users/{user}{PATHS[turn % len(PATHS)]}")
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.read[user, answer.json()["release"]] += 1

    @contextmanager
    def running(self) -> Iterator[Load]:
        threads = [threading.Thread(target=self.run) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._ends.set()
            for thread in threads:
                thread.join()


def wait_for(told: str, is_so: Callable[[], Any], within_s: float = 90) -> None:
    deadline = time.monotonic() + within_s
    while not is_so():
        assert time.monotonic() < deadline, told
        time.sleep(0.1)


def release_of(http: httpx.Client, user: str) -> str:
    return str(http.get(f"/v1/users/{user}").raise_for_status().json()["release"])


def test_a_canary_under_load_from_its_start_to_its_rollback_and_the_next_one_to_its_promotion(
    ports: tuple[str, int], tiny_release: TinyRelease
) -> None:
    url, rpc = ports
    users, canaries = tiny_release.user_ids, Canaries(tiny_release.workspace)
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as http, Load(url, users).running() as load:
        trial = canaries.start("release-2", share=0.4, limits=Limits(min_requests=50), by="a test", reason="")
        draw = trial.draw()
        inside = {user for user in users if draw(user) < trial.share}
        some = min(inside)
        wait_for("the canary did not come", lambda: {release_of(http, some) for _ in range(50)} == {"release-2"})
        time.sleep(ON_THEIR_WAY_S)
        load.read.clear()
        wait_for("nobody read", lambda: sum(load.read.values()) > 200)
        seen = {user: {release for of, release in load.read if of == user} for user in users}
        assert {user for user, releases in seen.items() if releases == {"release-2"}} == inside
        assert {user for user, releases in seen.items() if releases == {"release-1"}} == set(users) - inside
        with grpc.insecure_channel(f"127.0.0.1:{rpc}") as channel:
            read: Any = channel.unary_unary("/sonder.v1.Sonder/GetProfile", response_deserializer=Profile.FromString)
            asked = GetProfileRequest(user_id=some).SerializeToString()
            assert read(asked, timeout=20).release == "release-2"
            assert read(asked, timeout=20, metadata=(("x-sonder-release", "release-1"),)).release == "release-1"
            with pytest.raises(grpc.RpcError, match="is not served here"):
                read(asked, timeout=20, metadata=(("x-sonder-release", "release-3"),))

        at = iso_time(tiny_release.as_of_us + 1)
        event = {"user_id": some, "item_id": "item-3", "action": "buy", "timestamp": at}
        before = {name: num_events(http, some, name) for name in ("release-1", "release-2")}
        assert http.post("/v1/events", json={"events": [event]}).status_code == 202
        for name, num in before.items():
            wait_for(f"the refresh of {name} did not come", lambda n=name, m=num: num_events(http, some, n) == m + 1)

        folder = tiny_release.workspace.canary_counts(trial.id)
        wait_for("no counts", lambda: read_counts(folder, now_s=time.time()).total("candidate", "stored").requests)
        write_counts(folder, "another-gateway", bad_counts(), now_s=time.time())
        wait_for("no rollback", lambda: canaries.read().running is None, within_s=20)
        ended = canaries.read().ended[0]
        assert (ended.state, "degraded computed" in ended.reason) == ("rolled_back", True)
        wait_for("it was not taken back", lambda: release_of(http, some) == "release-1", within_s=20)
        measured = http.get("/metrics").text
        assert "sonder_canary_rollbacks_total 1.0" in measured
        assert 'sonder_canary_answers_total{arm="candidate",kind="stored",outcome="fine"}' in measured

        canaries.also("release-1")
        canaries.start("release-3", share=1.0, by="a test", reason="")
        wait_for("the second canary did not come", lambda: release_of(http, some) == "release-3")
        canaries.promote(by="a test", reason="good")
        wait_for("no promotion", lambda: http.get("/v1/release").json()["release"] == "release-3")
        assert http.get(f"/v1/users/{some}", params={"release": "release-1"}).json()["release"] == "release-1"
        assert http.get(f"/v1/users/{some}", params={"release": "release-2"}).status_code == 404
    assert set(load.statuses) == {200}, load.statuses


def num_events(http: httpx.Client, user: str, release: str) -> int:
    return int(http.get(f"/v1/users/{user}", params={"release": release}).raise_for_status().json()["num_events"])


def bad_counts() -> Counts:
    """As a second gateway would say them, whose candidate is degraded."""
    fast = Counter({latency_bin(0.004): 100})
    now = slot_of(time.time())
    slots = {
        now - back: {
            ("served", "computed"): Tally(100, 0, 0, fast),
            ("candidate", "computed"): Tally(100, 60, 0, fast),
        }
        for back in range(3)
    }
    return Counts(slots, gateways=1)  # type: ignore[arg-type]
