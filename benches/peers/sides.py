"""The processes of a comparison: the upstreams, the gateway, and its peers.

Must hold: what is measured is alone on its core; upstreams and load share the other one. Everything listens on loopback, on free ports, and is
ended with the comparison.
"""

import contextlib
import itertools
import json
import os
import pathlib
import re
import socket
import subprocess
import threading
import time
import urllib.request

MEASURED, LOAD = sorted(os.sched_getaffinity(0))[-1], sorted(os.sched_getaffinity(0))[0]
PATIENCE = 20


def free_port():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


class Side:
    """A process that listens, on a core of its own or that of the load."""

    def __init__(self, name, command, port, core=MEASURED, shown="", variables=None):
        self.name, self.port, self.shown = name, port, shown or " ".join(command)
        self.address = f"127.0.0.1:{port}"
        self.process = subprocess.Popen(
            ["taskset", "--cpu-list", str(core), *command],
            env={**os.environ, **(variables or {})}, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )
        try:
            self._await()
        except BaseException:
            self.end()
            raise

    def _await(self):
        """Returns once it accepts connections."""
        give_up = time.monotonic() + PATIENCE
        while True:
            if self.process.poll() is not None:
                raise RuntimeError(f"{self.name} has ended: {self.shown}")
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                break
            except OSError:
                if time.monotonic() > give_up:
                    raise RuntimeError(f"{self.name} does not listen") from None
                time.sleep(0.005)

    def cpu(self):
        """CPU time of all its threads so far, user and system, in microseconds. nginx works in a child."""
        own = self.process.pid
        children = pathlib.Path(f"/proc/{own}/task/{own}/children").read_text().split()
        threads = (thread for pid in (own, *children) for thread in pathlib.Path(f"/proc/{pid}/task").glob("*/schedstat"))
        return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e3

    def memory(self, field):
        """A field of its memory's status, in kB."""
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"^{field}:\s+(\d+) kB", status, re.MULTILINE)[1])

    def forget_peak(self):
        """What `VmHWM` tells from now on is the peak from now on."""
        pathlib.Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def end(self):
        """Ends it and its children, without waiting for open calls."""
        self.process.terminate()
        try:
            self.process.wait(2)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class Gateway(Side):
    """The gateway, everything at its defaults but for one worker thread."""

    def __init__(self, upstream, variables=None, metadata=()):
        port = free_port()
        command = gateway_command(upstream, port)
        self.admin = command[command.index("--admin-listen") + 1] if "--admin-listen" in command else None
        self.metadata = metadata
        shown = " ".join([*(f"{name}={value}" for name, value in (variables or {}).items()), *command])
        super().__init__("gateway", command, port, shown=shown, variables=variables)

    def end(self):
        # A signal would make it drain, which is of no use here.
        self.process.kill()
        self.process.wait()


def traces(collector):
    """Variables that export one trace of a hundred to `collector`, which takes them and answers nothing."""
    return {
        "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://{collector.address}", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf",
        "OTEL_TRACES_SAMPLER": "traceidratio", "OTEL_TRACES_SAMPLER_ARG": "0.01",
    }


# How often connections are renewed, files change, and metrics are read, where that is measured: in seconds.
RENEWAL = 10


def renewing(folder, collector):
    """Variables with which everything goes on that goes on in production: renewed connections, files that change, log, metrics and traces."""
    key = folder / "upstream-key"
    key.write_text("sk-bench")
    return traces(collector) | {"RUNS_GATEWAY_UPSTREAM_RENEWAL": f"{RENEWAL}s", "RUNS_GATEWAY_UPSTREAM_API_KEY_FILE": str(key)}


@contextlib.contextmanager
def disturbed(gateway, folder):
    """Changes the gateway's files and reads its metrics, again and again."""
    over = threading.Event()

    def disturb():
        for number in itertools.count():
            (folder / "upstream-key").write_text(f"sk-bench-{number}")
            if gateway.admin:
                urllib.request.urlopen(f"http://{gateway.admin}/metrics", timeout=PATIENCE).read()
            if over.wait(RENEWAL):
                return

    thread = threading.Thread(target=disturb)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# What a mesh's proxy says of a caller.
CALLER = (("x-forwarded-client-cert", "By=spiffe://mesh/gateway;Hash=00;URI=spiffe://mesh/bench"),)


def named():
    """Variables with which callers have the names that a mesh gives them, and a key of the gateway's own."""
    return {"RUNS_GATEWAY_UPSTREAM_API_KEY": "sk-bench", "RUNS_GATEWAY_MESH_IDENTITY": "xfcc", "RUNS_GATEWAY_MESH_PEER": "loopback"}


def isolated(folder):
    """The same, with callers that are kept from each other. The upstream's threads are nobody's, which all may use."""
    key = folder / "isolation-key"
    key.write_text("a secret of at least thirty-two bytes")
    return named() | {"RUNS_GATEWAY_ISOLATE_CALLERS": "true", "RUNS_GATEWAY_ISOLATION_KEY_FILE": str(key), "RUNS_GATEWAY_ISOLATE_UNMARKED": "allow"}


def gateway_command(upstream, port):
    """The command, with the metrics port if this gateway has one. Its log, one line per call, goes to /dev/null."""
    binary = os.environ["RUNS_GATEWAY_BIN"]
    command = [binary, "serve", "--listen", f"127.0.0.1:{port}", "--upstream-url", f"http://{upstream.address}", "--worker-threads", "1"]
    if "--admin-listen" in subprocess.run([binary, "serve", "--help"], capture_output=True, text=True, check=True).stdout:
        command += ["--admin-listen", f"127.0.0.1:{free_port()}"]
    return command


def bare(upstream):
    """tonic and reqwest with the gateway's codec, and nothing else (`bare/`)."""
    port = free_port()
    command = [os.environ["BARE_BIN"], "serve", "--listen", f"127.0.0.1:{port}", "--upstream-url", f"http://{upstream.address}"]
    return Side("bare", command, port)


def nginx(name, folder, servers, core):
    """nginx with one worker; `servers` is the inside of its `http` block."""
    port = free_port()
    folder = folder / name
    folder.mkdir(exist_ok=True)
    conf = folder / "nginx.conf"
    conf.write_text(f"""daemon off; worker_processes 1; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 16384; }}
http {{
  client_max_body_size 0; access_log off; tcp_nodelay on; keepalive_requests 1000000000; keepalive_timeout 1h;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {servers.replace("PORT", str(port))}
}}
""")
    return Side(name, ["nginx", "-p", str(folder), "-e", str(folder / "error.log"), "-c", str(conf)], port, core)


def unary_upstream(folder, run, thread, documents):
    """A REST API that answers every request with the same run, but for one `thread` and for the `documents`, files by path.

    HTTP/1.1, and on the next port HTTP/2 for direct calls.
    """
    second = free_port()
    document = '{"id":"%s","object":"thread","created_at":1764672000,"metadata":{}}' % thread
    answer = (
        "default_type application/json; add_header x-request-id req_4kTq0Zb9; location / { return 200 '%s'; } location /v1/traces { return 200 ''; } "
        "location = /threads/%s { return 200 '%s'; }" % (run, thread, document)
    ) + " ".join("location = %s { alias %s; }" % each for each in documents.items())
    side = nginx(
        "upstream", folder,
        f"server {{ listen 127.0.0.1:PORT backlog=4096; {answer} }} server {{ listen 127.0.0.1:{second} http2; http2_max_concurrent_streams 1024; {answer} }}",
        LOAD,
    )
    side.http2 = f"127.0.0.1:{second}"
    return side


def events_upstream(load):
    port = free_port()
    return Side("events", [load, "upstream", "--listen", f"127.0.0.1:{port}"], port, LOAD)


def redis(folder):
    """A store for the event log, which keeps nothing on disk."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    return Side("redis", command, port, LOAD)


def nginx_proxy(name, folder, upstream):
    """Plain proxying from HTTP/2 to HTTP/1.1, bytes passed on as they come."""
    proxying = """upstream api { server %s; keepalive 1024; keepalive_requests 1000000000; }
  server {
    listen 127.0.0.1:PORT http2 backlog=4096; http2_max_concurrent_streams 1024;
    location / { proxy_pass http://api; proxy_http_version 1.1; proxy_set_header Connection ""; proxy_buffering off; proxy_request_buffering off; proxy_read_timeout 1h; }
  }"""
    side = nginx(name, folder, proxying % upstream.address, MEASURED)
    side.shown += " (" + " ".join((proxying % upstream.address).split()) + ")"
    return side


def envoy(folder, upstream):
    """Envoy with its transcoder from gRPC to REST, and nothing else: no access log, no limits, no retries."""
    port = free_port()
    typed = lambda name, **more: {"@type": f"type.googleapis.com/envoy.extensions.{name}", **more}
    address = lambda port: {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    filters = [
        {"name": "transcoder", "typed_config": typed(
            "filters.http.grpc_json_reverse_transcoder.v3.GrpcJsonReverseTranscoder", descriptor_path=str(folder / "transcoded.pb"))},
        {"name": "router", "typed_config": typed("filters.http.router.v3.Router")},
    ]
    manager = typed(
        "filters.network.http_connection_manager.v3.HttpConnectionManager", stat_prefix="in", codec_type="HTTP2", http_filters=filters,
        http2_protocol_options={"max_concurrent_streams": 1024},
        route_config={"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "api"}}]}]},
    )
    cluster = {"name": "api", "type": "STATIC", "connect_timeout": "5s", "load_assignment": {"cluster_name": "api", "endpoints": [
        {"lb_endpoints": [{"endpoint": {"address": address(upstream.port)}}]}]}}
    listener = {"name": "in", "address": address(port), "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}]}
    config = folder / "envoy.json"
    config.write_text(json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}}, indent=1))
    command = [str(folder / "venv/bin/envoy"), "-c", str(config), "--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return Side("envoy", command, port)
