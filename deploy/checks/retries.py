"""Which calls are repeated: in Envoy, Istio, Linkerd and gRPC's service config the same, and no write.

Must hold: what is repeated is what the contract's `idempotency_level` says, of every method.
"""

import collections
import concurrent.futures
import importlib
import json
import pathlib
import re

import grpc
import yaml
from google.protobuf import descriptor_pb2, descriptor_pool

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
POOL = descriptor_pool.Default()
for file in sorted((DEPLOY.parent / "proto/runsgateway/v1").glob("*_service.proto")):
    importlib.import_module(f"runsgateway.v1.{file.stem}_pb2")
SERVICES = [
    service
    for file in sorted((DEPLOY.parent / "proto/runsgateway/v1").glob("*_service.proto"))
    for service in POOL.FindFileByName(f"runsgateway/v1/{file.name}").services_by_name.values()
]
METHODS = {f"{service.full_name}/{method.name}": method for service in SERVICES for method in service.methods}
# Doing these twice is as doing them once: the contract says so.
REPEATABLE = {
    name for name, method in METHODS.items() if method.GetOptions().idempotency_level != descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN
}
STREAMS = {name for name, method in METHODS.items() if method.server_streaming}


def agree():
    assert envoy() == REPEATABLE
    assert istio() == REPEATABLE
    # What is repeated has to be held by the proxy until it has ended, so not streams.
    assert linkerd() == REPEATABLE - STREAMS
    named = [(name["service"] + "/" + name["method"], "retryPolicy" in config) for config in config()["methodConfig"] for name in config["name"]]
    assert sorted(name for name, _ in named) == sorted(METHODS)
    assert {name for name, retried in named if retried} == REPEATABLE


def config():
    return json.loads((DEPLOY / "service_config.json").read_text())


def envoy():
    """What is repeated after a connection broke."""
    document = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())
    connections = document["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    writes, others = connections["route_config"]["virtual_hosts"][0]["routes"]
    regex = writes["match"]["safe_regex"]["regex"]
    # Envoy's own errors go by the same names.
    (mapper,) = connections["local_reply_config"]["mappers"]
    assert mapper["filter"]["and_filter"]["filters"][1]["header_filter"]["header"]["string_match"]["safe_regex"]["regex"] == regex
    assert not {"reset", "5xx", "gateway-error", "cancelled"} & on(writes["route"]["retry_policy"]["retry_on"])
    assert "reset" in on(others["route"]["retry_policy"]["retry_on"]) and others["match"] == {"prefix": "/"}
    assert writes["route"]["timeout"] == others["route"]["timeout"] == "0s"
    return {name for name in METHODS if not re.fullmatch(regex, f"/{name}")}


def istio():
    service, _ = yaml.safe_load_all((DEPLOY / "istio/routing.yaml").read_text())
    repeated, others = service["spec"]["http"]
    assert on(others["retries"]["retryOn"]) == {"connect-failure", "refused-stream"} and "match" not in others
    matches = [match["uri"] for match in repeated["match"]]
    return {
        name
        for name in METHODS
        if any(re.fullmatch(uri.get("regex", "(?!)"), f"/{name}") or f"/{name}".startswith(uri.get("prefix", "?")) for uri in matches)
    }


def linkerd():
    repeated, others = yaml.safe_load_all((DEPLOY / "linkerd/routing.yaml").read_text())
    assert not others["metadata"].get("annotations") and "matches" not in others["spec"]["rules"][0]
    assert repeated["metadata"]["annotations"]["retry.linkerd.io/grpc"] == "unavailable"
    matches = [match["method"] for rule in repeated["spec"]["rules"] for match in rule["matches"]]
    named = {f"{match['service']}/{match['method']}" for match in matches if "method" in match}
    assert named <= set(METHODS), named - set(METHODS)
    return {name for name in METHODS if name in named or {"service": name.split("/")[0]} in matches}


def on(words):
    return set(words.split(","))


class Refusing(grpc.GenericRpcHandler):
    """A server that says UNAVAILABLE, and counts how often."""

    def __init__(self):
        self.attempts = collections.Counter()

    def service(self, details):
        name = details.method.removeprefix("/")
        if name not in METHODS:
            return None

        def refuse(_, context):
            self.attempts[name] += 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "not now")

        return grpc.stream_stream_rpc_method_handler(refuse)


def attempts():
    refusing = Refusing()
    # Each service has a server of its own: a client's budget of retries is one for each server.
    for service in sorted({name.split("/")[0] for name in METHODS}):
        server = grpc.server(concurrent.futures.ThreadPoolExecutor(8), handlers=[refusing])
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.service_config", json.dumps(config()))]) as channel:
            for name in (name for name in METHODS if name.startswith(f"{service}/")):
                try:
                    list(channel.stream_stream(f"/{name}")(iter([b""]), timeout=20))
                except grpc.RpcError as error:
                    assert error.code() == grpc.StatusCode.UNAVAILABLE, (name, error)
        server.stop(None).wait()
    expected = {name: 3 if name in REPEATABLE else 1 for name in METHODS}
    assert refusing.attempts == expected, refusing.attempts
    return f"{len(METHODS)} methods, {sum(refusing.attempts.values())} attempts"
