"""The chart, as checkov and kube-score see it.

Must hold: they find nothing but what is argued away here, and what is argued away here they find.
"""

import json
import subprocess
import sys

import chart

# What a scanner says, and why it stays so.
ARGUED = {
    # A pod that is throttled answers late though its node is idle. On a busy node its share is its
    # request.
    "CKV_K8S_11": "CPU limits should be set",
    "container-resources": "CPU limit is not set",
    # A digest is of a registry's image, and the chart knows no registry. `image.digest` is there.
    "CKV_K8S_43": "Image should use digest",
    # Tags are versions and do not move; a node that starts a pod again then needs no registry.
    # `image.pullPolicy` is there.
    "CKV_K8S_15": "Image Pull Policy should be Always",
    "container-image-pull-policy": "ImagePullPolicy is not set to Always",
    # The topology spread says it more exactly, of nodes and of zones.
    "deployment-has-host-podantiaffinity": "Deployment does not have a host podAntiAffinity set",
}
# Of kube-score's checks that are off by default those that do not want limits to be requests.
OPTIONAL = ["container-seccomp-profile", "container-ports-check"]
# What both have to find in the variant without a network policy.
MISSING = {"CKV2_K8S_6", "pod-networkpolicy"}


def clean():
    files = dict(zip(chart.VARIANTS, chart.rendered()))
    missed = MISSING - {check for _, check, _ in findings(files.pop("no-scaling"))}
    assert not missed, f"a network policy that is missing is not found by {missed}"
    found = [finding for file in files.values() for finding in findings(file)]
    wrong = [f"{file.name}: {check}: {what}" for file, check, what in found if ARGUED.get(check) != what]
    assert not wrong, "\n".join(wrong)
    idle = ARGUED.keys() - {check for _, check, _ in found}
    assert not idle, f"argued away, and not found: {sorted(idle)}"
    return f"{len(ARGUED)} findings argued away"


def findings(file):
    """What is found in a file: the file, the check, and what it says."""
    yield from ((file, *finding) for finding in [*checkov(file), *kube_score(file)])


def checkov(file):
    words = ["--framework", "kubernetes", "--skip-download", "--quiet", "--output", "json"]
    scanned = run(sys.executable, "-m", "checkov.main", "--file", file, *words)
    assert scanned["summary"]["parsing_errors"] == 0, file
    for failed in scanned["results"]["failed_checks"]:
        yield failed["check_id"], failed["check_name"]


def kube_score(file):
    words = [word for check in OPTIONAL for word in ("--enable-optional-test", check)]
    words += ["--kubernetes-version", f"v{chart.KUBERNETES}", "--output-format", "json"]
    for manifest in run(chart.OUT / "bin/kube-score", "score", *words, file):
        for check in manifest["checks"]:
            # Ten is the best grade.
            if not check["skipped"] and check["grade"] < 10:
                yield from ((check["check"]["id"], comment["summary"]) for comment in check["comments"])


def run(*words):
    """The JSON that a scanner prints. Its exit code only says whether it found anything."""
    words = [str(word) for word in words]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.stdout, f"{words}:\n{done.stderr}"
    return json.loads(done.stdout)
