"""The Helm chart, rendered with few values and with many, and the manifests for meshes."""

import base64
import hashlib
import json
import pathlib
import re
import shutil
import subprocess

import yaml
from cryptography.hazmat.primitives.asymmetric import ed25519

import certificates
from servers import BINARY, CERTIFICATES

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
CHART = DEPLOY / "helm/runs-gateway"
OUT = DEPLOY.parent / "target/deploy"
KUBERNETES = "1.30"
PLAIN = {}
# What turns on all that is off by default.
FULL = {
    "upstream": {"profile": "azure", "url": "https://upstream.example/openai", "apiKeySecret": {"name": "key"}},
    "callers": {
        "tokensSecret": {"name": "tokens"},
        "jwt": {"issuer": "https://issuer.example", "audience": "a", "jwksUrl": "https://issuer.example/jwks"},
        "mesh": "istio",
        "allowedClients": ["a.example", "spiffe://b.example/c"],
        "weights": {"a.example": 1000, "spiffe://b.example/c?d=e": 2},
        "isolation": {"keySecret": {"name": "isolation"}, "unmarked": "allow", "assistants": True},
    },
    "tls": {"secretName": "tls", "clientCa": True},
    "eventLog": {
        "store": "rediss://gateway@redis.example:6380/1",
        "keySecret": {"name": "log-key"},
        "passwordSecret": {"name": "log-password"},
        "caSecret": {"name": "log-ca"},
        "peers": [{"podSelector": {"matchLabels": {"app": "redis"}}}],
    },
    "flags": {"max-upstream-requests": 256},
    "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4317"}],
    "drain": {"delaySeconds": 10, "timeoutSeconds": 60, "preStopSeconds": 7},
    "image": {"digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "pull"}],
    "networkPolicy": {"callers": [{"podSelector": {}}], "scrapers": [{"namespaceSelector": {}}]},
    "autoscaling": {"targetOpenCalls": 200},
    "gatewayApi": {"parentRefs": [{"name": "edge", "namespace": "edge", "sectionName": "grpc"}], "hostnames": ["runs.example"]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "service": {"annotations": {"a": "b"}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "nodeSelector": {"e": "f"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
}
NO_SCALING = {"autoscaling": {"enabled": False}, "podDisruptionBudget": {"enabled": False}, "networkPolicy": {"enabled": False}, "callers": {"allowAnonymous": True}}
LINKERD = {
    "upstream": {"url": "http://upstream.models:8000/v1", "apiKeySecret": {"name": "key"}},
    "callers": {
        "mesh": "linkerd",
        "jwt": {"issuer": "issuer", "audience": ["a", "b"], "jwksConfigMap": {"name": "issuer"}, "nameClaim": "client_id"},
        "isolation": {"keySecret": {"name": "isolation"}},
    },
}
VARIANTS = {"plain": PLAIN, "full": FULL, "no-scaling": NO_SCALING, "linkerd": LINKERD}


def helm(*words, values=None):
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "values.yaml"
    file.write_text(yaml.safe_dump(values or {}))
    words = [OUT / "bin/helm", *words, CHART, "--kube-version", KUBERNETES, "--namespace", "runs", "--values", file]
    return subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def render(values):
    """The manifests, as text."""
    done = helm("template", "release", values=values)
    assert done.returncode == 0, done.stderr
    return done.stdout


def find(values, kind):
    return [manifest for manifest in yaml.safe_load_all(render(values)) if manifest and manifest["kind"] == kind]


def variables():
    """The environment variables that the gateway reads."""
    said = subprocess.run([str(BINARY), "serve", "--help"], stdout=subprocess.PIPE, text=True).stdout
    return set(re.findall(r"RUNS_GATEWAY_\w+", said))


def lint():
    for values in VARIANTS.values():
        done = helm("lint", "--strict", values=values)
        assert done.returncode == 0, done.stdout


def validate(*files):
    words = [OUT / "bin/kubectl-validate", "--version", KUBERNETES, "--local-crds", OUT / "crds", *files]
    return subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def rendered():
    """A file of manifests for each variant."""
    files = [OUT / f"{name}.yaml" for name in VARIANTS]
    for file, values in zip(files, VARIANTS.values()):
        file.write_text(render(values))
    return files


def schemas():
    files = [DEPLOY / "istio/routing.yaml", DEPLOY / "linkerd/routing.yaml", *rendered()]
    done = validate(*files)
    assert done.returncode == 0, done.stdout
    # A validator that lets everything pass would be no check.
    plain, full = files[2:4]
    mistakes = [
        (files[0], "retries:", "retry:"),
        (files[1], "matches:", "match:"),
        (plain, "containers:", "container:"),
        (full, "hostnames:", "hosts:"),
    ]
    for file, old, new in mistakes:
        broken = OUT / "broken.yaml"
        broken.write_text(file.read_text().replace(old, new))
        assert validate(broken).returncode != 0, f"{file} with {new} passes"
    kinds = [manifest["kind"] for file in files for manifest in yaml.safe_load_all(file.read_text()) if manifest]
    # Linkerd's file has two routes, the chart one more.
    assert "ServiceMonitor" in kinds and kinds.count("GRPCRoute") == 3 and "Secret" not in kinds
    return f"{len(kinds)} manifests of {len(set(kinds))} kinds"


def pods():
    for values in VARIANTS.values():
        (deployment,) = find(values, "Deployment")
        pod = deployment["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] and not pod["automountServiceAccountToken"]
        confined = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
        assert container["securityContext"] == confined
        # Secrets are files, and only named.
        assert not any("secretKeyRef" in variable.get("valueFrom", {}) or "KEY" == variable["name"][-3:] for variable in container["env"])
        environment = {variable["name"]: variable.get("value") for variable in container["env"]}
        # Kubernetes puts in only what stands before.
        names = list(environment)
        assert "POD_IP" not in names or names.index("POD_IP") < names.index("RUNS_GATEWAY_MESH_PEER")
        spread = {constraint["topologyKey"] for constraint in pod["topologySpreadConstraints"]}
        assert spread == {"topology.kubernetes.io/zone", "kubernetes.io/hostname"}
        folders = [mount["mountPath"] for mount in container.get("volumeMounts", [])]
        files = [value for name, value in environment.items() if name.startswith("RUNS_GATEWAY_") and name.endswith("_FILE")]
        assert sorted(folders) == sorted({file.rsplit("/", 1)[0] for file in files}), (folders, files)
        assert [mount["name"] for mount in container.get("volumeMounts", [])] == [volume["name"] for volume in pod.get("volumes", [])]
        drain = sum(int(environment[f"RUNS_GATEWAY_DRAIN_{name}"].removesuffix("s")) for name in ["DELAY", "TIMEOUT"])
        before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        assert before == values.get("drain", {}).get("preStopSeconds", 0)
        assert pod["terminationGracePeriodSeconds"] > before + drain
        # Kubernetes has to see the drain before the drain takes no more calls.
        ready = container["readinessProbe"]
        delay = int(environment["RUNS_GATEWAY_DRAIN_DELAY"].removesuffix("s"))
        assert ready["periodSeconds"] * ready["failureThreshold"] < delay
        # Callers that fill the public port do not get the pod restarted, and the kubelet speaks no TLS.
        for probe in ["startup", "readiness", "liveness"]:
            assert container[f"{probe}Probe"]["httpGet"]["port"] == "admin"
        (port,) = [port for service in find(values, "Service") for port in service["spec"]["ports"] if port["name"] == "grpc"]
        assert port["appProtocol"] == "grpc"


def scaling_metrics():
    """The metrics of pods that the autoscaler goes by."""
    (autoscaler,) = find(FULL, "HorizontalPodAutoscaler")
    names = [metric["pods"]["metric"]["name"] for metric in autoscaler["spec"]["metrics"] if metric["type"] == "Pods"]
    assert names
    return names


def ports():
    """The network policy lets gateways reach what values name by a URL."""
    for store, port in [("redis://redis", 6379), ("redis://redis/0", 6379), ("redis://redis:7000", 7000), ("rediss://user@[::1]:6380/1", 6380), ("redis://[::1]/1", 6379)]:
        (policy,) = find({"eventLog": {"store": store, "keySecret": {"name": "key"}}}, "NetworkPolicy")
        assert [port] == [rule["ports"][0]["port"] for rule in policy["spec"]["egress"][1:-1]], (store, policy)
    (policy,) = find({}, "NetworkPolicy")
    assert len(policy["spec"]["egress"]) == 2
    opened = {"full": [6380, 443, 443, 443], "linkerd": [8000, 443]}
    for name, expected in opened.items():
        (policy,) = find(VARIANTS[name], "NetworkPolicy")
        rules = policy["spec"]["egress"][1:]
        assert [rule["ports"][0]["port"] for rule in rules] == expected, (name, policy)
    (store,) = [rule for rule in find(FULL, "NetworkPolicy")[0]["spec"]["egress"] if "to" in rule]
    assert store["to"] == FULL["eventLog"]["peers"]


def environment():
    """The gateway itself finds no fault with the environment and the files of a pod."""
    certificates.write(CERTIFICATES)
    for name, values in VARIANTS.items():
        said = checked(values)
        assert said.startswith("ok: "), f"{name}: {said}"
    # A gateway that found no fault with anything would be no check.
    for flag, said in {"no-such-flag": "RUNS_GATEWAY_NO_SUCH_FLAG", "isolate-callers": "--isolation-key-file"}.items():
        assert said in checked({"flags": {flag: True}}), flag


def checked(values):
    """What `serve --check` says in a pod of the chart."""
    (deployment,) = find(values, "Deployment")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    root = OUT / "pod"
    shutil.rmtree(root, ignore_errors=True)
    environment = {}
    for variable in container["env"]:
        value = variable.get("value", "10.1.2.3").replace("$(POD_IP)", "10.1.2.3")
        environment[variable["name"]] = value.replace("/etc/runs-gateway", str(root))
    known = contents(values)
    for file in (pathlib.Path(value) for value in environment.values() if value.startswith(str(root))):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(known.get(file.name, b"a secret of at least thirty-two bytes"))
    words = [str(BINARY), *container["args"], "--check"]
    return subprocess.run(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True).stdout


def contents(values):
    """What is in files of these names, as far as it is no secret of any bytes."""
    point = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes_raw()
    point = base64.urlsafe_b64encode(point).decode().rstrip("=")
    (weights,) = find(values, "ConfigMap") or [{"data": {"weights": ""}}]
    return {
        "tokens": f"{hashlib.sha256(b'any').hexdigest()} checks\n".encode(),
        "jwks.json": json.dumps({"keys": [{"kty": "OKP", "crv": "Ed25519", "x": point}]}).encode(),
        "weights": weights["data"]["weights"].encode(),
        "tls.crt": (CERTIFICATES / "gateway.example.crt").read_bytes(),
        "tls.key": (CERTIFICATES / "gateway.example.key").read_bytes(),
        "ca.crt": (CERTIFICATES / "ca.crt").read_bytes(),
    }


def refusals():
    key = {"apiKeySecret": {"name": "key"}}
    refused = {
        "has to know its callers": {"upstream": key},
        "needs tls.secretName": {"tls": {"clientCa": True}},
        "needs tls.clientCa": {"callers": {"allowedClients": ["a"]}},
        "needs audience": {"callers": {"jwt": {"issuer": "a"}}},
        "needs either jwksUrl or jwksConfigMap": {"callers": {"jwt": {"issuer": "a", "audience": "b"}}},
        "jwt: needs issuer": {"callers": {"jwt": {"audience": "b"}}},
        "isolation: needs upstream.apiKeySecret": {"callers": {"mesh": "istio", "isolation": {"keySecret": {"name": "key"}}}},
        "and callers with names": {"upstream": key, "callers": {"allowAnonymous": True, "isolation": {"keySecret": {"name": "key"}}}},
        "isolation: needs keySecret": {"callers": {"isolation": {"assistants": True}}},
        "weights": {"callers": {"weights": {"a": 1001}}},
        "set networkPolicy.scrapers": {"serviceMonitor": {"enabled": True}},
        "callers": {"callers": {"mesh": "consul"}},
        "upsteam": {"upsteam": {"url": "mistyped"}},
        "needs eventLog.keySecret": {"eventLog": {"store": "redis://redis"}},
        "belongs into eventLog.passwordSecret": {"eventLog": {"store": "redis://:p@redis", "keySecret": {"name": "key"}}},
        "eventLog/store": {"eventLog": {"store": "disk"}},
    }
    for why, values in refused.items():
        done = helm("template", "release", values=values)
        assert done.returncode != 0 and why in done.stderr, (values, done.stderr)
