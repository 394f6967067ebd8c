"""gRPC, asked by a public client that knows nothing but reflection: the answers of HTTP, its doors and its errors."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.json_format import MessageToDict
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from services.gateway.doors import Doors
from services.gateway.engine import Engine
from services.gateway.rpc import sonder_pb2
from services.gateway.rpc.server import RpcServer
from services.gateway.told import ArmAnswer
from sonder.core.keys import create_key
from sonder.core.storage import Folder

if TYPE_CHECKING:
    from conftest import Served

PROTO = Path(sonder_pb2.__file__).with_name("sonder.proto")


class Caller:
    """Calls methods by name with dictionaries, as grpcurl does."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self._service = DescriptorPool(self.database).FindServiceByName("sonder.v1.Sonder")

    def call(self, name: str, metadata: Any = (), **content: Any) -> Any:
        method = self._service.FindMethodByName(name)
        call: Any = self._channel.unary_unary(
            f"/sonder.v1.Sonder/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=GetMessageClass(method.output_type).FromString,
        )
        return call(GetMessageClass(method.input_type)(**content), metadata=metadata, timeout=20)

    def told(self, name: str, metadata: Any = (), **content: Any) -> grpc.RpcError:
        with pytest.raises(grpc.RpcError) as error:
            self.call(name, metadata, **content)
        return error.value


@contextmanager
def listening(engine: Callable[[], Engine | None], doors: Doors | None = None) -> Iterator[grpc.Channel]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = RpcServer(engine, doors)
    port = asyncio.run_coroutine_threadsafe(server.start("127.0.0.1", 0), loop).result(10)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    asyncio.run_coroutine_threadsafe(server.stop(1), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture
def caller(served: Served) -> Iterator[Caller]:
    with listening(lambda: served.engine) as channel:
        yield Caller(channel)


def rounded(content: Any) -> Any:
    """Floats as float32 has them, and without what messages leave out."""
    if isinstance(content, dict):
        return {name: rounded(one) for name, one in content.items() if one is not None and one not in ([], {})}
    if isinstance(content, list):
        return [rounded(one) for one in content]
    return float(f"{content:.5g}") if isinstance(content, float) else content


def said(message: Any) -> Any:
    content = MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    return rounded({**content, "age_ms": 0})


def over_http(served: Served, path: str) -> Any:
    return rounded({**served.request("GET", path).json(), "age_ms": 0})


def test_reflection_lists_the_services(caller: Caller) -> None:
    assert set(caller.database.get_services()) >= {"sonder.v1.Sonder", "grpc.health.v1.Health"}


def test_health_is_answered() -> None:
    with listening(lambda: None) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(service="sonder.v1.Sonder"), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


@pytest.mark.parametrize("user", ["user-1", "user-7", "nobody"])
def test_profiles_are_those_of_http(caller: Caller, served: Served, user: str) -> None:
    assert said(caller.call("GetProfile", user_id=user)) == over_http(served, f"/v1/users/{user}")
    fields = ["embedding", "segments"]
    got = caller.call("GetProfile", user_id=user, fields=fields)
    assert said(got) == over_http(served, f"/v1/users/{user}?fields=embedding,segments")
    (one,) = caller.call("BatchGetProfiles", user_ids=[user], fields=fields).profiles
    assert said(one) == said(got)


def test_a_fresh_profile_is_computed_now(caller: Caller) -> None:
    stored, fresh = (caller.call("GetProfile", user_id="user-1", fresh=fresh) for fresh in (False, True))
    assert fresh.computed_at > stored.computed_at
    assert fresh.num_events == stored.num_events


def test_recommendations_and_neighbours_are_those_of_http(caller: Caller, served: Served) -> None:
    got = caller.call("GetRecommendations", user_id="user-1", k=5, diversity=0.3, from_interests=True)
    path = "/v1/users/user-1/recommendations?k=5&diversity=0.3&from=interests"
    assert said(got) == over_http(served, path)
    assert said(caller.call("GetRecommendations", user_id="user-1")) == over_http(
        served, "/v1/users/user-1/recommendations"
    )
    assert said(caller.call("GetSimilarUsers", user_id="user-1", k=3)) == over_http(
        served, "/v1/users/user-1/similar?k=3"
    )
    items = caller.call("GetSimilarItems", item_id="item-3", k=3)
    assert [item.item_id for item in items.similar] == [
        item["item_id"] for item in served.request("GET", "/v1/items/item-3/similar?k=3").json()["similar"]
    ]
    assert caller.call("GetRelease").release == served.request("GET", "/v1/release").json()["release"]


def test_events_are_accepted_once(own_served: Served) -> None:
    with listening(lambda: own_served.engine) as channel:
        caller = Caller(channel)
        events = [{"user_id": "user-1", "item_id": "item-1", "action": "buy", "event_id": "e-grpc", "value": 2.5}]
        assert caller.call("SendEvents", events=events).accepted == 1
        again = caller.call("SendEvents", events=[*events, {"user_id": "user-1"}])
        assert (again.accepted, again.duplicates, again.rejected[0].row) == (0, 1, 1)
        assert caller.told("SendEvents", events=[{}]).code() == grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("method", "content"),
    [
        ("GetProfile", {}),
        ("GetProfile", {"user_id": "u" * 257}),
        ("GetProfile", {"user_id": "u", "fields": ["nothing"]}),
        ("BatchGetProfiles", {}),
        ("BatchGetProfiles", {"user_ids": ["u"] * 1001}),
        ("GetRecommendations", {"user_id": "u", "k": 0}),
        ("GetRecommendations", {"user_id": "u", "k": 101}),
        ("GetRecommendations", {"user_id": "u", "diversity": float("nan")}),
        ("GetRecommendations", {"user_id": "u", "max_age_days": -1.0}),
        ("SendEvents", {}),
    ],
)
def test_what_is_malformed_is_told(caller: Caller, method: str, content: dict[str, Any]) -> None:
    error: Any = caller.told(method, **content)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert error.details()


def test_an_unknown_item_and_an_engine_that_is_not_there_have_their_codes(caller: Caller) -> None:
    error: Any = caller.told("GetSimilarItems", item_id="nothing")
    assert error.code() == grpc.StatusCode.NOT_FOUND
    with listening(lambda: None) as channel:
        error = Caller(channel).told("GetRelease")
        assert (error.code(), error.details()[:10]) == (grpc.StatusCode.UNAVAILABLE, "No release")


def test_a_bug_is_told_without_what_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def broken() -> Engine:
        raise ZeroDivisionError("user-1")

    with listening(broken) as channel:
        error: Any = Caller(channel).told("GetRelease")
    assert (error.code(), "user-1" in error.details()) == (grpc.StatusCode.INTERNAL, False)
    assert "/sonder.v1.Sonder/GetRelease failed" in caplog.text


def test_the_doors_are_those_of_http(served: Served, tmp_path: Path) -> None:
    file = Folder.at(str(tmp_path / "keys.json"))
    reads = create_key(file, "feed", scopes=["read"])
    limited = create_key(file, "ads", scopes=["read"], fields=["segments"])
    slow = create_key(file, "slow", scopes=["read"], rate=0.01)
    with listening(lambda: served.engine, Doors(file)) as channel:
        caller = Caller(channel)

        def code(name: str, key: str, header: str = "authorization", **content: Any) -> grpc.StatusCode:
            value = f"Bearer {key}" if header == "authorization" else key
            try:
                caller.call(name, ((header, value),), **content)
            except grpc.RpcError as error:
                told: Any = error
                assert key not in told.details()
                return told.code()  # type: ignore[no-any-return]
            return grpc.StatusCode.OK

        assert code("GetProfile", reads, user_id="user-1") == grpc.StatusCode.OK
        assert code("GetProfile", reads, "x-api-key", user_id="user-1") == grpc.StatusCode.OK
        assert code("GetProfile", "sk_x_y", user_id="user-1") == grpc.StatusCode.UNAUTHENTICATED
        assert caller.told("GetRelease").code() == grpc.StatusCode.UNAUTHENTICATED  # type: ignore[attr-defined]
        assert code("SendEvents", reads, events=[]) == grpc.StatusCode.PERMISSION_DENIED
        for method in ("GetProfile", "BatchGetProfiles"):
            users: dict[str, Any] = {"user_id": "u"} if method == "GetProfile" else {"user_ids": ["u"]}
            assert code(method, limited, fields=["segments"], **users) == grpc.StatusCode.OK
            assert code(method, limited, fields=["segments", "scores"], **users) == grpc.StatusCode.PERMISSION_DENIED
            assert code(method, limited, **users) == grpc.StatusCode.PERMISSION_DENIED
        for method in ("GetRecommendations", "GetSimilarUsers"):
            assert code(method, limited, user_id="u") == grpc.StatusCode.PERMISSION_DENIED
        assert code("GetSimilarItems", limited, item_id="i") == grpc.StatusCode.PERMISSION_DENIED
        assert code("GetRelease", slow) == grpc.StatusCode.OK
        error: Any = caller.told("GetRelease", (("x-api-key", slow),))
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert dict(error.trailing_metadata())["retry-after"] == "100"


def test_a_call_keeps_its_request_id(caller: Caller) -> None:
    call: Any = caller._channel.unary_unary("/sonder.v1.Sonder/GetRelease")
    _, done = call.with_call(b"", metadata=(("x-request-id", "mine-7"),), timeout=10)
    assert dict(done.initial_metadata())["x-request-id"] == "mine-7"


def test_the_arms_of_an_answer_are_in_its_trailing_metadata(served: Served) -> None:
    class OfAnArm:
        """An engine whose answers are of an arm."""

        def named(self, release: str | None) -> OfAnArm:
            return self

        def profile(self, user_id: str, fields: Any = None) -> bytes:
            return ArmAnswer.of(served.engine.profile(user_id, fields), [("first", "control"), ("second", "b")])

    engine: Any = OfAnArm()
    with listening(lambda: engine) as channel:
        call = channel.unary_unary(
            "/sonder.v1.Sonder/GetProfile",
            request_serializer=sonder_pb2.GetProfileRequest.SerializeToString,
            response_deserializer=sonder_pb2.Profile.FromString,
        )
        answer, told = call.with_call(sonder_pb2.GetProfileRequest(user_id="user-1"), timeout=20)
    assert answer.user_id == "user-1"
    assert dict(told.trailing_metadata())["x-sonder-experiment"] == "first=control, second=b"


def test_the_generated_messages_are_those_of_the_proto_file() -> None:
    written = PROTO.read_text(encoding="utf-8")
    messages = dict(re.findall(r"^message (\w+) \{([^}]*)\}", written, flags=re.MULTILINE))
    generated = sonder_pb2.DESCRIPTOR.message_types_by_name
    assert set(messages) == set(generated)
    for name, body in messages.items():
        fields = {field: int(number) for field, number in re.findall(r"(\w+) = (\d+);", body)}
        assert fields == {field.name: field.number for field in generated[name].fields}, name
    methods = re.findall(r"rpc (\w+)\((\w+)\) returns \((\w+)\)", written)
    service = sonder_pb2.DESCRIPTOR.services_by_name["Sonder"]
    assert methods == [(m.name, m.input_type.name, m.output_type.name) for m in service.methods]
