"""The processes of a mesh: gateways, Envoy in front of them, and upstreams behind them.

Must hold: Envoy runs on deploy/envoy/envoy.yaml with addresses and paths replaced, and nothing else; every one of them has to be there to be
replaced. Nobody waits for a time to pass: a server is ready when it says where it listens, Envoy when it holds its gateways to be healthy.
"""

import asyncio
import collections
import contextlib
import http.server
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
OUT = ROOT / "target/mesh"
BINARY = pathlib.Path(os.environ["RUNS_GATEWAY_BIN"]).resolve()
CERTIFICATES = OUT / "certificates"
ENVOY = pathlib.Path(sys.executable).parent / "envoy"


class Server:
    """A process that says where it listens."""

    def __init__(self, *words):
        self.lines = {}
        self.printed = collections.deque(maxlen=50)
        self.heard = threading.Condition()
        # Nobody asks for the admin ports here, and there is more than one gateway.
        environment = {**os.environ, "RUNS_GATEWAY_ADMIN_LISTEN": "127.0.0.1:0", "RUNS_GATEWAY_LOG": "warn"}
        words = [str(word) for word in words]
        self.process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
        self.reader = threading.Thread(target=self.read)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.printed.append(line)
            found = re.match(r"(\w+) listening on ([\d.:]+)", line)
            if found:
                with self.heard:
                    self.lines[found[1]] = found[2]
                    self.heard.notify_all()

    def address(self, name):
        with self.heard:
            if not self.heard.wait_for(lambda: name in self.lines, timeout=20):
                raise AssertionError(f"{self.process.args} does not say where it listens: {''.join(self.printed)}")
        return self.lines[name]

    def end(self, how=signal.SIGKILL):
        self.process.send_signal(how)
        self.process.wait(timeout=30)
        self.reader.join()


def embedded():
    """The Runs API that the gateway embeds, for other gateways to use."""
    return Server(BINARY, "dev", "--listen", "127.0.0.1:0", "--rest-listen", "127.0.0.1:0")


def gateway(upstream, *words, listen="127.0.0.1:0", name="gateway.example"):
    tls = ["--tls-cert-file", CERTIFICATES / f"{name}.crt", "--tls-key-file", CERTIFICATES / f"{name}.key"]
    callers = ["--tls-client-ca-file", CERTIFICATES / "ca.crt", "--allowed-client", "envoy.example"]
    return Server(BINARY, "serve", "--listen", listen, "--upstream-url", upstream, *tls, *callers, *words)


@contextlib.contextmanager
def ending(server):
    try:
        yield server
    finally:
        server.end()


@contextlib.asynccontextmanager
async def mesh(name, upstreams, *words):
    """A gateway for each upstream, and Envoy in front of them."""
    gateways = []
    try:
        for upstream in upstreams:
            gateways.append(gateway(upstream, *words))
        with ending(Envoy(name, [server.address("grpc") for server in gateways])) as envoy:
            await envoy.healthy(len(gateways))
            yield envoy, gateways
    finally:
        for server in gateways:
            server.end()


class Envoy:
    """Envoy, with the configuration that is shipped."""

    def __init__(self, name, gateways):
        self.folder = OUT / name
        self.folder.mkdir(parents=True, exist_ok=True)
        admin = self.folder / "admin"
        admin.unlink(missing_ok=True)
        config = self.folder / "envoy.yaml"
        config.write_text(configuration(gateways))
        words = [ENVOY, "--config-path", config, "--admin-address-path", admin, "--concurrency", "1", "--disable-hot-restart", "--log-level", "warn"]
        with open(self.folder / "access.log", "w") as out, open(self.folder / "envoy.log", "w") as log:
            self.process = subprocess.Popen([str(word) for word in words], stdout=out, stderr=log)
        until(lambda: admin.exists() and admin.read_text(), "Envoy's admin address", self.died)
        self.admin = admin.read_text()
        until(lambda: "LIVE" in self.ask("ready"), "Envoy", self.died)
        (listener,) = json.loads(self.ask("listeners?format=json"))["listener_statuses"]
        address = listener["local_address"]["socket_address"]
        self.address = f"{address['address']}:{address['port_value']}"

    def died(self):
        if self.process.poll() is not None:
            raise AssertionError(f"Envoy ended: {(self.folder / 'envoy.log').read_text()}")

    def ask(self, path):
        try:
            with urllib.request.urlopen(f"http://{self.admin}/{path}", timeout=5) as answer:
                return answer.read().decode()
        except OSError:
            return ""

    def count(self, name):
        """A number that Envoy keeps on its gateways."""
        name = f"cluster.runs-gateway.{name}"
        found = re.search(rf"^{re.escape(name)}: (\d+)$", self.ask(f"stats?filter=^{re.escape(name)}$"), re.MULTILINE)
        return int(found[1]) if found else 0

    async def healthy(self, number):
        await asyncio.to_thread(until, lambda: self.count("membership_healthy") == number, f"{number} healthy gateways", self.died)

    def calls(self):
        """The access log."""
        return [json.loads(line) for line in (self.folder / "access.log").read_text().splitlines()]

    def end(self):
        self.process.terminate()
        self.process.wait(timeout=30)


def configuration(gateways):
    """The shipped configuration, on this machine's addresses and files."""
    replaced = {"address: 0.0.0.0, port_value: 50051": "address: 127.0.0.1, port_value: 0", "port_value: 9901": "port_value: 0"}
    for number, gateway in enumerate(gateways, 1):
        address, port = gateway.rsplit(":", 1)
        replaced[f"address: gateway-{number}.example, port_value: 50051"] = f"address: {address}, port_value: {port}"
    for file, name in [("tls.crt", "envoy.example.crt"), ("tls.key", "envoy.example.key"), ("ca.crt", "ca.crt"), ("callers.crt", "ca.crt")]:
        replaced[f"/etc/envoy/tls/{file}"] = str(CERTIFICATES / name)
    text = (ROOT / "deploy/envoy/envoy.yaml").read_text()
    for old, new in replaced.items():
        if text.count(old) != 1:
            raise AssertionError(f"deploy/envoy/envoy.yaml has {text.count(old)} times: {old}")
        text = text.replace(old, new)
    return text


def until(true, what, check=lambda: None):
    end = time.monotonic() + 20
    while not true():
        check()
        if time.monotonic() > end:
            raise AssertionError(f"waited in vain for {what}")
        time.sleep(0.02)


class Upstream:
    """A REST API of few words, which counts what it is asked."""

    def __init__(self):
        self.lock = threading.Lock()
        self.asked = collections.Counter()
        self.status = 200
        # Runs that were made, newest first.
        self.runs = []
        # Cleared, answers wait; with `hold_posts` those to writes alone.
        self.hold_posts = False
        self.go = threading.Event()
        self.go.set()
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                upstream.answer(self)

            def do_POST(self):
                upstream.answer(self)

            def log_message(self, *_):
                pass

        class Listener(http.server.ThreadingHTTPServer):
            request_queue_size = 256

            def handle_error(self, *_):
                """A gateway that was killed does not read its answers."""

        self.server = Listener(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever)
        self.thread.start()

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("content-length", 0)))
        run = {"id": "run_1", "object": "thread.run", "created_at": int(time.time()), "thread_id": "thread_1", "assistant_id": "asst_1", "status": "completed"}
        with self.lock:
            self.asked[request.command] += 1
            if request.command == "POST":
                run["metadata"] = json.loads(body or "{}").get("metadata", {})
                if self.status == 200:
                    run["id"] = f"run_{len(self.runs) + 1}"
                    self.runs.insert(0, run)
            is_list = request.command == "GET" and request.path.split("?")[0].endswith("/runs")
            said = {"object": "list", "data": list(self.runs), "has_more": False} if is_list else run
        if request.command == "POST" or not self.hold_posts:
            self.go.wait(timeout=20)
        error = {"error": {"message": "Not now.", "type": "server_error", "param": None, "code": None}}
        body = json.dumps(said if self.status == 200 else error).encode()
        request.send_response(self.status)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    def end(self):
        self.go.set()
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()
