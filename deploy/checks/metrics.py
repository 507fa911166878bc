"""Alerts, dashboard and the chart's autoscaler, held to what gateways really say at /metrics after calls of many kinds.

Must hold: a name or label counts as existing only if it was seen, and a matcher only if it matches a value that was seen. A panel that is empty
for ever looks just like one on which nothing is wrong.
"""

import asyncio
import collections
import hashlib
import json
import pathlib
import re
import subprocess
import urllib.request

import chart
from calls import Runs, code
from servers import BINARY, Server, Upstream, ending

DEPLOY = pathlib.Path(__file__).resolve().parents[1]
OUT = DEPLOY.parent / "target/deploy"
# What Prometheus adds, and the label of a histogram's buckets.
ADDED = {"job", "instance", "le"}


def exist():
    words = [OUT / "bin/promql", DEPLOY / "prometheus/alerts.yaml", DEPLOY / "grafana/dashboard.json"]
    done = subprocess.run([str(word) for word in words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    needs = json.loads(done.stdout)
    seen = asyncio.run(calls())
    wrong = [f"the chart's autoscaler: no metric {name}" for name in chart.scaling_metrics() if name not in seen]
    for need in needs:
        for metric in need["metrics"]:
            if metric not in seen:
                wrong.append(f"{need['where']}: no metric {metric}")
        labels = {label: values for metric in need["metrics"] for label, values in seen.get(metric, {}).items()}
        wrong += [f"{need['where']}: no label {label} in {need['metrics']}" for label in need["labels"] if label not in labels.keys() | ADDED]
        for matcher in need["matchers"]:
            values = labels.get(matcher["label"], set())
            regex = matcher["value"] if "~" in matcher["type"] else re.escape(matcher["value"])
            if matcher["label"] not in ADDED and not any(re.fullmatch(regex, value) for value in values):
                wrong.append(f"{need['where']}: no {matcher['label']} that is {matcher['value']!r}, only {sorted(values)}")
    assert not wrong, "\n".join(wrong)
    names = {metric for need in needs for metric in need["metrics"]}
    return f"{len(needs)} expressions on {len(names)} of {len(seen)} series names"


async def calls():
    """Metrics by name: for each label the values that were seen. Of a gateway on the embedded API, and of one whose upstream fails."""
    seen = collections.defaultdict(lambda: collections.defaultdict(set))
    # Only a gateway with certificates has it.
    seen["runs_gateway_certificate_expiry_timestamp_seconds"]["certificate"].add("server")
    listen = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0"]
    # The token that all calls here show, whose caller has a name.
    tokens = OUT / "tokens"
    OUT.mkdir(parents=True, exist_ok=True)
    tokens.write_text(f"{hashlib.sha256(b'any').hexdigest()} checks\n")
    with ending(Server(BINARY, "dev", *listen, "--tokens-file", tokens)) as gateway:
        async with Runs(gateway.address("grpc")) as runs:
            async for _ in runs.stream():
                pass
            made = await runs.create({"embedded.scenario": "fail"})
            async for _ in runs.watch(made.thread_id, made.id):
                pass
        scrape(gateway, seen)
    with ending(Upstream()) as upstream:
        few = ["--max-upstream-requests", "1", "--max-upstream-queue", "0", "--retry-pause", "1ms", "--max-retries", "1"]
        with ending(Server(BINARY, "serve", *listen, "--upstream-url", upstream.url, *few)) as gateway:
            async with Runs(gateway.address("grpc")) as runs:
                for status in [429, 503]:
                    upstream.status = status
                    await code(runs.get())
                    await code(runs.create())
                # One holds the only place, the others are refused.
                upstream.go.clear()
                waiting = [asyncio.create_task(code(runs.get())) for _ in range(3)]
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                upstream.go.set()
                await asyncio.gather(*waiting)
            scrape(gateway, seen)
    return seen


def scrape(gateway, seen):
    with urllib.request.urlopen(f"http://{gateway.address('admin')}/metrics", timeout=5) as answer:
        text = answer.read().decode()
    for name, labels in re.findall(r"^(\w+)(?:\{(.*)\})? \S+$", text, re.MULTILINE):
        seen[name]
        for label, value in re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', labels):
            seen[name][label].add(value)
