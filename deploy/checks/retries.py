"""Which calls are repeated: in Envoy, Istio, Linkerd and gRPC's service config the same, and no write, but
for creates whose caller says that they have a `request_id`.

Must hold: what is repeated is what the contract says, by `idempotency_level`, of every method
with a route (the option `rest`). A method that a file treats otherwise is named, with the line
that the file wants.
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
from runsgateway.v1 import rest_pb2

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
POOL = descriptor_pool.Default()
FILES = sorted((DEPLOY.parent / "proto/runsgateway/v1").glob("*_service.proto"))
for file in FILES:
    importlib.import_module(f"runsgateway.v1.{file.stem}_pb2")


# `repeatable`: to do it twice is the same as to do it once.
# `stream`: a proxy that repeats it would have to hold the whole answer.
Method = collections.namedtuple("Method", "repeatable stream route")


def method_of(descriptor):
    options = descriptor.GetOptions()
    assert options.HasExtension(rest_pb2.rest), f"{descriptor.full_name} has no option (rest)"
    route = options.Extensions[rest_pb2.rest]
    repeatable = options.idempotency_level != descriptor_pb2.MethodOptions.IDEMPOTENCY_UNKNOWN
    return Method(repeatable, descriptor.server_streaming, f"{route.method} {route.path}")


METHODS = {
    f"{service.full_name}/{method.name}": method_of(method)
    for file in FILES
    for service in POOL.FindFileByName(f"runsgateway/v1/{file.name}").services_by_name.values()
    for method in service.methods
}


# How a caller says that a create has a `request_id`.
HEADER = "x-repeatable-create"


def repeatable_by_id(methods):
    """Creates of what can be looked for: its list has the same path."""
    routes = {method.route for method in methods.values()}
    creates = {name: method.route for name, method in methods.items() if re.search("/(Stream)?Create", name)}
    return {name for name, route in creates.items() if route.replace("POST", "GET") in routes}


def agree():
    by_id = repeatable_by_id(METHODS)
    assert len(by_id) == 4, by_id
    unary = {name for name in by_id if not METHODS[name].stream}
    for file, said, wanted in [
        ("envoy/envoy.yaml", envoy_by_id(METHODS), by_id),
        ("istio/routing.yaml", istio_by_id(METHODS), by_id),
        ("linkerd/routing.yaml", linkerd_by_id(), unary),
    ]:
        assert said == wanted, f"{file}: with {HEADER}: {said ^ wanted}"
    wrong = disagreements(METHODS)
    assert not wrong, "\n" + "\n".join(wrong)
    return f"{len(METHODS)} methods"


def new_methods_are_asked_for():
    """Each file that treats a changed contract wrongly says what it lacks, and no other file."""
    get = Method(True, False, "GET /gets")
    create = Method(False, False, "POST /creates")
    assistants = "runsgateway.v1.AssistantService"
    archive, restore = f"{assistants}/ArchiveAssistant", f"{assistants}/RestoreAssistant"
    told(
        {**METHODS, archive: get, restore: create},
        f"service_config.json: {archive} (GET /gets) is not named; add to the list with retryPolicy: "
        f'{{ "service": "{assistants}", "method": "ArchiveAssistant" }}',
        f"service_config.json: {restore} (POST /creates) is not named; "
        f'add to the list without retryPolicy: {{ "service": "{assistants}", "method": "RestoreAssistant" }}',
        f"envoy/envoy.yaml: {restore} (POST /creates) is retried and may not be done twice; "
        f"both expressions of writes have to match /{restore}",
        f"istio/routing.yaml: {archive} (GET /gets) is not retried; "
        f"add to the matches of repeatable: - uri: {{ exact: /{archive} }}",
        f"linkerd/routing.yaml: {archive} (GET /gets) is not retried; "
        f"add to the matches: - method: {{ service: {assistants}, method: ArchiveAssistant }}",
    )
    # A call that is gone, and one that may not be done twice any more.
    gone, changed = "runsgateway.v1.MessageService/GetMessage", "runsgateway.v1.ThreadService/DeleteThread"
    methods = {**METHODS, changed: create}
    del methods[gone]
    told(
        methods,
        f"service_config.json: {gone} is not in the contract; remove it",
        f"service_config.json: {changed} (POST /creates) is in the wrong list; "
        "move it to the one without retryPolicy",
        f"envoy/envoy.yaml: {changed} (POST /creates) is retried and may not be done twice; "
        f"both expressions of writes have to match /{changed}",
        f"istio/routing.yaml: {changed} (POST /creates) is retried and may not be done twice; "
        f"no match of repeatable may match /{changed}",
        f"linkerd/routing.yaml: {gone} is not in the contract; remove it",
        f"linkerd/routing.yaml: {changed} (POST /creates) is retried and may not be done twice; "
        "no match may name it",
    )


def told(methods, *expected):
    said = disagreements(methods)
    assert said == list(expected), "\n".join(said)


def disagreements(methods):
    """A line for each place where a file differs from a contract with these methods."""
    wrong = list(in_service_config(methods))
    repeatable = {name for name, method in methods.items() if method.repeatable}
    # A proxy holds what it may have to repeat until the call ends, so no streams.
    unary = {name for name in repeatable if not methods[name].stream}
    # What is to be done about a method that is not retried, and about one that is.
    table = [
        (
            ("envoy/envoy.yaml", envoy(methods), repeatable),
            "no expression of writes may match /{0}",
            "both expressions of writes have to match /{0}",
        ),
        (
            ("istio/routing.yaml", istio(methods), repeatable),
            "add to the matches of repeatable: - uri: {{ exact: /{0} }}",
            "no match of repeatable may match /{0}",
        ),
        (
            ("linkerd/routing.yaml", linkerd(methods), unary),
            "add to the matches: - method: {{ service: {1}, method: {2} }}",
            "no match may name it",
        ),
    ]
    for (file, retried, wanted), to_add, to_remove in table:
        for name in sorted(wanted ^ retried):
            if name not in methods:
                wrong.append(f"{file}: {name} is not in the contract; remove it")
                continue
            what, action = "is not retried", to_add
            if name not in wanted:
                why = "is a stream" if name in repeatable else "may not be done twice"
                what, action = f"is retried and {why}", to_remove
            action = action.format(name, *name.split("/"))
            wrong.append(f"{file}: {name} ({methods[name].route}) {what}; {action}")
    return wrong


def in_service_config(methods):
    lists = {True: "with retryPolicy", False: "without retryPolicy"}
    named = collections.defaultdict(list)
    for entry in config()["methodConfig"]:
        for name in entry["name"]:
            named[f"{name['service']}/{name['method']}"].append("retryPolicy" in entry)
    for name in sorted({*methods, *named}):
        if name not in methods:
            yield f"service_config.json: {name} is not in the contract; remove it"
            continue
        (service, method), (repeatable, _, route) = name.split("/"), methods[name]
        wanted = lists[repeatable]
        if name not in named:
            what = f"is not named; add to the list {wanted}: "
            what += f'{{ "service": "{service}", "method": "{method}" }}'
        elif len(named[name]) > 1:
            what = "is named twice; remove one"
        elif named[name] != [repeatable]:
            what = f"is in the wrong list; move it to the one {wanted}"
        else:
            continue
        yield f"service_config.json: {name} ({route}) {what}"


def config():
    return json.loads((DEPLOY / "service_config.json").read_text())


def envoy(methods):
    """What is repeated after a connection broke."""
    document = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())
    connections = document["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    by_id, writes, others = connections["route_config"]["virtual_hosts"][0]["routes"]
    assert by_id["match"]["headers"] == [{"name": HEADER, "string_match": {"exact": "true"}}]
    assert by_id["route"] == others["route"]
    regex = writes["match"]["safe_regex"]["regex"]
    # Envoy's own errors go by the same names.
    (mapper,) = connections["local_reply_config"]["mappers"]
    assert mapper["filter"]["and_filter"]["filters"][1]["header_filter"]["header"]["string_match"]["safe_regex"]["regex"] == regex
    assert not {"reset", "5xx", "gateway-error", "cancelled"} & on(writes["route"]["retry_policy"]["retry_on"])
    assert "reset" in on(others["route"]["retry_policy"]["retry_on"]) and others["match"] == {"prefix": "/"}
    assert writes["route"]["timeout"] == others["route"]["timeout"] == "0s"
    return {name for name in methods if not re.fullmatch(regex, f"/{name}")}


def envoy_by_id(methods):
    document = yaml.safe_load((DEPLOY / "envoy/envoy.yaml").read_text())
    connections = document["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    by_id, *_ = connections["route_config"]["virtual_hosts"][0]["routes"]
    regex = by_id["match"]["safe_regex"]["regex"]
    return {name for name in methods if re.fullmatch(regex, f"/{name}")}


def istio_by_id(methods):
    service, _ = yaml.safe_load_all((DEPLOY / "istio/routing.yaml").read_text())
    matches = [match for match in service["spec"]["http"][0]["match"] if "headers" in match]
    assert all(match["headers"] == {HEADER: {"exact": "true"}} for match in matches)
    return {name for name in methods if any(matched(match["uri"], f"/{name}") for match in matches)}


def linkerd_by_id():
    repeated, _ = yaml.safe_load_all((DEPLOY / "linkerd/routing.yaml").read_text())
    matches = [match for rule in repeated["spec"]["rules"] for match in rule["matches"] if "headers" in match]
    assert all(match["headers"] == [{"name": HEADER, "value": "true"}] for match in matches)
    return {f"{match['method']['service']}/{match['method']['method']}" for match in matches}


def istio(methods):
    service, _ = yaml.safe_load_all((DEPLOY / "istio/routing.yaml").read_text())
    repeated, others = service["spec"]["http"]
    assert on(others["retries"]["retryOn"]) == {"connect-failure", "refused-stream"} and "match" not in others
    matches = [match["uri"] for match in repeated["match"] if "headers" not in match]
    return {name for name in methods if any(matched(uri, f"/{name}") for uri in matches)}


def matched(uri, path):
    """Whether an Istio match is met."""
    ((kind, value),) = uri.items()
    if kind == "prefix":
        return path.startswith(value)
    return path == value if kind == "exact" else re.fullmatch(value, path) is not None


def linkerd(methods):
    repeated, others = yaml.safe_load_all((DEPLOY / "linkerd/routing.yaml").read_text())
    assert not others["metadata"].get("annotations") and "matches" not in others["spec"]["rules"][0]
    assert repeated["metadata"]["annotations"]["retry.linkerd.io/grpc"] == "unavailable"
    matches = [match["method"] for rule in repeated["spec"]["rules"] for match in rule["matches"] if "headers" not in match]
    named = {f"{match['service']}/{match['method']}" for match in matches if "method" in match}
    # What the contract does not have any more is in the set, too.
    return named | {name for name in methods if {"service": name.split("/")[0]} in matches}


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
    expected = {name: 3 if method.repeatable else 1 for name, method in METHODS.items()}
    assert refusing.attempts == expected, refusing.attempts
    return f"{len(METHODS)} methods, {sum(refusing.attempts.values())} attempts"
