"""What is in deploy/, held to the contract, to the gateway's own flags and metrics, and to the programs that are to read it.

`check`, in the folder above, prepares all that this needs. Each function named `test_` is one test; words as arguments run only those tests whose
names have one of them.
"""

import pathlib
import re
import shutil
import subprocess
import sys
import time
import traceback

import certificates
import chart
import metrics
import retries
import scanners
from servers import BINARY, CERTIFICATES, ENVOY, configuration

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
ROOT = DEPLOY.parent
OUT = ROOT / "target/deploy"


def command(*words, **options):
    """What a program prints. Raises AssertionError if it fails."""
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)
    assert done.returncode == 0, f"{words}:\n{done.stdout}"
    return done.stdout


def copied():
    """What the Dockerfile takes from the repository."""
    lines = re.findall(r"^COPY (?!--from)(.+) \S+$", (DEPLOY / "Dockerfile").read_text(), re.MULTILINE)
    return [name for line in lines for name in line.split()]


def test_the_dockerfile_has_no_lint():
    command(ENVOY.parent / "hadolint", "--failure-threshold", "style", DEPLOY / "Dockerfile")


def test_what_the_dockerfile_copies_is_what_the_build_gets_and_needs():
    ignore = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert sorted(line[1:] for line in ignore if line.startswith("!")) == sorted(copied()) and "*" in ignore
    tree = OUT / "build"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for name in copied():
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tree / name)
    # The target of the repository: what others build there of the dependencies is not built twice.
    command("cargo", "check", "--quiet", "--locked", "--bin", "runs-gateway", "--target-dir", ROOT / "target", cwd=tree)


def test_the_dockerfile_uses_a_rust_that_the_crate_supports_and_flags_that_exist():
    text, manifest = (DEPLOY / "Dockerfile").read_text(), (ROOT / "Cargo.toml").read_text()
    version = re.search(r'^rust-version = "(.*)"$', manifest, re.MULTILINE)[1]
    assert f"FROM rust:{version}-" in text
    assert set(re.findall(r"RUNS_GATEWAY_\w+", text)) <= chart.variables()
    assert "--addr" in command(BINARY, "healthcheck", "--help")


def test_envoy_takes_the_example_configuration():
    certificates.write(CERTIFICATES)
    file = OUT / "envoy.yaml"
    file.write_text(configuration(["127.0.0.1:1", "127.0.0.1:2"]))
    assert "OK" in command(ENVOY, "--mode", "validate", "--config-path", file)


def test_the_chart_has_no_lint():
    chart.lint()


def test_all_manifests_are_what_kubernetes_istio_and_the_gateway_api_take():
    return chart.schemas()


def test_checkov_and_kube_score_find_nothing_that_is_not_argued_away():
    return scanners.clean()


def test_a_pod_of_the_chart_is_confined_and_lives_as_long_as_a_drain():
    chart.pods()


def test_the_network_policy_lets_gateways_reach_what_values_name():
    chart.ports()


def test_the_gateway_takes_the_environment_and_the_files_of_a_pod():
    chart.environment()


def test_the_chart_refuses_what_cannot_work():
    chart.refusals()


def test_every_configuration_retries_the_same_methods_and_no_write():
    return retries.agree()


def test_a_new_call_is_asked_for_by_the_line_that_each_configuration_wants():
    retries.new_methods_are_asked_for()


def test_a_grpc_client_that_loads_the_service_config_retries_reads_and_no_write():
    return retries.attempts()


def test_alerts_and_dashboard_ask_for_metrics_and_labels_that_exist():
    return metrics.exist()


def main(words):
    began, failed = time.monotonic(), 0
    tests = [(name, test) for name, test in globals().items() if name.startswith("test_")]
    tests = [test for test in tests if not words or any(word in test[0] for word in words)]
    for name, test in tests:
        title = name[5:].replace("_", " ")
        try:
            said = test()
            print(f"[{time.monotonic() - began:4.0f} s] ok      {title}{f' ({said})' if said else ''}", flush=True)
        except Exception:
            failed += 1
            print(f"[{time.monotonic() - began:4.0f} s] FAILED  {title}\n{traceback.format_exc(limit=-3)}", flush=True)
    print(f"\n{len(tests) - failed} passed, {failed} failed")
    return failed


if __name__ == "__main__":
    sys.exit(1 if main(sys.argv[1:]) else 0)
