"""The processes: gateways and a Redis; and a TCP proxy that makes the Redis slow.

Must hold: nobody waits for a time to pass. A server is ready when it says where it listens, or when
it answers. A gateway that is started again listens where it listened before.
"""

import asyncio
import collections
import contextlib
import os
import pathlib
import re
import shutil
import signal
import socket
import tempfile
import time

import aiohttp
import redis.asyncio
import redis.exceptions
import trustme

from upstream import REPLICA

OUT = pathlib.Path(__file__).resolve().parents[2] / "target/replicas"
BINARY = pathlib.Path(os.environ["RUNS_GATEWAY_BIN"]).resolve()
# What the gateway is given in all tests but for what one of them is about. Each flag may be
# overruled by a test.
FLAGS = {
    "event-log-timeout": "1s",
    "event-log-lease": "3s",
    "poll-floor": "100ms",
    "poll-ceiling": "500ms",
    "poll-rate": "1000",
    "drain-delay": "0s",
    "drain-timeout": "20s",
}


class Gateway:
    """A replica. Each start of it is a process of its own, with a name that the upstream is told."""

    def __init__(self, number, upstream, store, flags):
        self.number = number
        self.upstream = upstream
        self.store = store
        self.flags = {**FLAGS, **flags}
        self.listen = "127.0.0.1:0"
        self.starts = 0
        # When each process was killed; and which were paused, from when until when.
        self.killed = {}
        self.paused = []
        self.printed = collections.deque(maxlen=50)

    @property
    def name(self):
        return f"{self.number}.{self.starts}"

    async def start(self):
        self.starts += 1
        key = OUT / "log.key"
        flags = {
            "listen": self.listen,
            "admin-listen": "127.0.0.1:0",
            "upstream-url": self.upstream.url,
            "upstream-header": f"{REPLICA}: {self.name}",
            "event-log": self.store,
            "event-log-key-file": str(key),
            **self.flags,
        }
        words = [word for name, value in flags.items() for word in (f"--{name}", value)]
        self.process = await asyncio.create_subprocess_exec(
            BINARY,
            "serve",
            *words,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "RUNS_GATEWAY_LOG": "info", "RUNS_GATEWAY_LOG_FORMAT": "text"},
        )
        self.lines = {}
        self.reader = asyncio.create_task(self.read(self.process.stdout))
        self.listen = await self.address("grpc")
        self.admin = await self.address("admin")

    async def read(self, output):
        while line := (await output.readline()).decode():
            self.printed.append(line)
            if found := re.match(r"(\w+) listening on ([\d.:]+)", line):
                self.lines[found[1]] = found[2]

    async def address(self, what):
        try:
            async with asyncio.timeout(30):
                while what not in self.lines and not self.reader.done():
                    await asyncio.sleep(0.01)
            return self.lines[what]
        except (TimeoutError, KeyError):
            raise AssertionError(f"a gateway does not start: {''.join(self.printed)}") from None

    async def kill(self):
        self.killed[self.name] = time.monotonic()
        await self.end(signal.SIGKILL)

    async def pause(self, seconds):
        began = time.monotonic()
        self.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(seconds)
        self.process.send_signal(signal.SIGCONT)
        self.paused.append((self.name, began, time.monotonic()))

    async def end(self, how=signal.SIGKILL):
        """Ends the process; gives its exit code."""
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.send_signal(how)
        code = await self.process.wait()
        await self.reader
        return code

    async def count(self, name):
        """A number that the gateway keeps of its event log."""
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{self.admin}/metrics") as answer:
                text = await answer.text()
        found = re.search(rf"^runs_gateway_event_log_{name}_total (\d+)", text, re.MULTILINE)
        assert found, f"no metric of this name: {name}"
        return int(found[1])


@contextlib.asynccontextmanager
async def replicas(number, upstream, store, **flags):
    """Gateways that share a store."""
    flags = {name.replace("_", "-"): value for name, value in flags.items()}
    gateways = [Gateway(index, upstream, store, flags) for index in range(number)]
    try:
        await asyncio.gather(*(gateway.start() for gateway in gateways))
        yield gateways
    finally:
        for gateway in gateways:
            with contextlib.suppress(AttributeError):
                await gateway.end()


class Redis:
    """A Redis of this test's own; with `tls`, one that speaks nothing else, under a CA of its own."""

    # The program: Redis or Valkey.
    program = "redis-server"

    def __init__(self, *words, tls=False):
        self.words = words
        self.folder = tempfile.mkdtemp(dir=OUT)
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self.url = f"{'rediss' if tls else 'redis'}://127.0.0.1:{self.port}/0"
        self.ca = certificates(self.folder) if tls else None

    async def __aenter__(self):
        await self.start()
        return self

    async def __aexit__(self, *_):
        await self.client.aclose()
        await self.kill()
        shutil.rmtree(self.folder)

    async def start(self):
        port = ["--port", str(self.port)]
        client = {"host": "127.0.0.1", "port": self.port}
        if self.ca:
            names = {"cert-file": "cert.pem", "key-file": "key.pem", "ca-cert-file": "ca.pem"}
            port = ["--port", "0", "--tls-port", str(self.port), "--tls-auth-clients", "no"]
            port += [word for flag, name in names.items() for word in (f"--tls-{flag}", f"{self.folder}/{name}")]
            client |= {"ssl": True, "ssl_ca_certs": self.ca}
        place = ["--bind", "127.0.0.1", *port, "--dir", self.folder]
        with open(f"{self.folder}/log", "a") as log:
            self.process = await asyncio.create_subprocess_exec(
                self.program, *place, "--save", "", *self.words, stdout=log, stderr=log
            )
        self.client = redis.asyncio.Redis(**client)
        async with asyncio.timeout(20):
            while True:
                with contextlib.suppress(redis.exceptions.ConnectionError, redis.exceptions.BusyLoadingError):
                    await self.client.ping()
                    return
                await asyncio.sleep(0.01)

    async def kill(self):
        self.process.kill()
        await self.process.wait()

    async def logs(self):
        """The names of all logs."""
        return [key async for key in self.client.scan_iter("*:events")]


def certificates(folder):
    """A CA, and what it has issued for loopback, in files; gives the CA's."""
    ca = trustme.CA()
    issued = ca.issue_cert("127.0.0.1")
    ca.cert_pem.write_to_path(f"{folder}/ca.pem")
    issued.private_key_pem.write_to_path(f"{folder}/key.pem")
    for index, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(f"{folder}/cert.pem", append=index > 0)
    return f"{folder}/ca.pem"


class SlowProxy:
    """Passes bytes on to a server, and answers as late as it is told."""

    def __init__(self, port):
        self.port = port
        self.delay = 0
        self.tasks = set()

    async def __aenter__(self):
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}/0"
        return self

    async def __aexit__(self, *_):
        self.server.close()
        for task in self.tasks:
            task.cancel()

    async def serve(self, reader, writer):
        self.tasks.add(asyncio.current_task())
        there, to = await asyncio.open_connection("127.0.0.1", self.port)
        late = asyncio.Queue()
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self.ask(reader, to))
                tasks.create_task(self.hear(there, late))
                tasks.create_task(self.answer(late, writer))
        except* (ConnectionError, EOFError):
            pass
        finally:
            to.close()
            writer.close()

    async def ask(self, reader, to):
        while data := await reader.read(65536):
            to.write(data)
            await to.drain()
        raise EOFError

    async def hear(self, there, late):
        while data := await there.read(65536):
            late.put_nowait((time.monotonic() + self.delay, data))
        raise EOFError

    async def answer(self, late, writer):
        while True:
            due, data = await late.get()
            await asyncio.sleep(max(0, due - time.monotonic()))
            writer.write(data)
            await writer.drain()
