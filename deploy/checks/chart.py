"""The Helm chart, rendered with few values and with many, and the manifests for meshes."""

import pathlib
import re
import subprocess

import yaml

from servers import BINARY

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
    },
    "tls": {"secretName": "tls", "clientCa": True},
    "flags": {"max-upstream-requests": 256},
    "env": [{"name": "OTEL_EXPORTER_OTLP_ENDPOINT", "value": "http://collector:4317"}],
    "drain": {"delaySeconds": 10, "timeoutSeconds": 60, "preStopSeconds": 7},
    "image": {"digest": f"sha256:{'0' * 64}"},
    "imagePullSecrets": [{"name": "pull"}],
    "networkPolicy": {"callers": [{"podSelector": {}}], "scrapers": [{"namespaceSelector": {}}]},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "service": {"annotations": {"a": "b"}},
    "podAnnotations": {"a": "b"},
    "podLabels": {"c": "d"},
    "nodeSelector": {"e": "f"},
    "tolerations": [{"operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
}
NO_SCALING = {"autoscaling": {"enabled": False}, "podDisruptionBudget": {"enabled": False}, "networkPolicy": {"enabled": False}, "callers": {"allowAnonymous": True}}
LINKERD = {"upstream": {"apiKeySecret": {"name": "key"}}, "callers": {"mesh": "linkerd"}}
VARIANTS = {"plain": PLAIN, "full": FULL, "no-scaling": NO_SCALING, "linkerd": LINKERD}


def helm(*words, values=None):
    OUT.mkdir(parents=True, exist_ok=True)
    file = OUT / "values.yaml"
    file.write_text(yaml.safe_dump(values or {}))
    words = [OUT / "bin/helm", *words, CHART, "--kube-version", KUBERNETES, "--values", file]
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


def schemas():
    files = [DEPLOY / "istio/routing.yaml", DEPLOY / "linkerd/routing.yaml"]
    for name, values in VARIANTS.items():
        files.append(OUT / f"{name}.yaml")
        files[-1].write_text(render(values))
    done = validate(*files)
    assert done.returncode == 0, done.stdout
    # A validator that lets everything pass would be no check.
    for file, old, new in [(files[0], "retries:", "retry:"), (files[1], "matches:", "match:"), (files[2], "containers:", "container:")]:
        broken = OUT / "broken.yaml"
        broken.write_text(file.read_text().replace(old, new))
        assert validate(broken).returncode != 0, f"{file} with {new} passes"
    kinds = [manifest["kind"] for file in files for manifest in yaml.safe_load_all(file.read_text()) if manifest]
    assert "ServiceMonitor" in kinds and "Secret" not in kinds
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


def environment():
    known = variables()
    for values in VARIANTS.values():
        (deployment,) = find(values, "Deployment")
        named = {variable["name"] for variable in deployment["spec"]["template"]["spec"]["containers"][0]["env"]}
        assert {name for name in named if name.startswith("RUNS_GATEWAY_")} <= known, named - known


def refusals():
    key = {"apiKeySecret": {"name": "key"}}
    refused = {
        "has to know its callers": {"upstream": key},
        "needs tls.secretName": {"tls": {"clientCa": True}},
        "needs tls.clientCa": {"callers": {"allowedClients": ["a"]}},
        "needs audience and jwksUrl": {"callers": {"jwt": {"issuer": "https://issuer.example"}}},
        "callers": {"callers": {"mesh": "consul"}},
        "upsteam": {"upsteam": {"url": "mistyped"}},
    }
    for why, values in refused.items():
        done = helm("template", "release", values=values)
        assert done.returncode != 0 and why in done.stderr, (values, done.stderr)
