"""Event streams: CPU per event, memory per stream, latency, start. The load is the program in `load/`, which checks counts and order."""

import re
import subprocess
import time

from sides import LOAD, MEASURED, Gateway, free_port, gateway_command
from unary import RUN_ID, THREAD, expect

CONNECTIONS = 8


class Streams:
    """A program that opens streams and reads them."""

    def __init__(self, load, address, call, plan):
        self.process = subprocess.Popen(
            ["taskset", "--cpu-list", str(LOAD), load, "streams", "--to", address, "--call", call, "--thread", plan, "--connections", str(CONNECTIONS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()

    def say(self, command):
        """Its answer, a number."""
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        expect(f"the streams have failed at {command!r}", "=" in answer)
        return int(answer.split("=")[1])


def bulk(load, side, streams, events, kind=None, more=0):
    """CPU time per event, of 300 bytes and `more`, when the upstream sends all of them in chunks of 16 KiB."""
    plan = f"large-{more}-{events}" if more else f"bulk-{events}"
    with Streams(load, side.address, kind or call(side), plan) as reading:
        before = side.cpu()
        reading.say(f"open {streams}")
        received = reading.say("finish")
        spent = side.cpu() - before
    expect(f"{side.name}: {received} of {streams * events} events", received == streams * events)
    return spent / received


def steps(load, side, streams, steps):
    """CPU time per step of `WatchRun` calls, each of a run of its own that is over and has so many steps."""
    with Streams(load, side.address, "steps", f"steps-{steps}") as reading:
        before = side.cpu()
        reading.say(f"open {streams}")
        received = reading.say("finish")
        spent = side.cpu() - before
    expect(f"{side.name}: {received} of {streams * steps} steps", received == streams * steps)
    return spent / received


def memory_of_steps(load, upstream, steps, watches, settle):
    """kB of anonymous memory per `WatchRun` of a run that goes on and has so many steps."""
    gateway = Gateway(upstream)
    try:
        latency(load, gateway.address, "get", rate=8, seconds=1)
        before = gateway.memory("RssAnon")
        with Streams(load, gateway.address, "steps", f"kept-{steps}") as reading:
            reading.say(f"open {watches}")
            time.sleep(settle)
            return (gateway.memory("RssAnon") - before) / watches
    finally:
        gateway.end()


def single(load, side, streams, pause, seconds, kind=None):
    """CPU time per event when each comes by itself, every `pause` ms on each stream, with all streams open."""
    events = int(seconds * 1000 / pause)
    with Streams(load, side.address, kind or call(side), f"paced-{pause}-{events}") as reading:
        reading.say(f"open {streams}")
        time.sleep(0.2 * seconds)  # Past the opening, which is not what is measured.
        first, before = reading.say("count"), side.cpu()
        time.sleep(0.6 * seconds)
        last, spent = reading.say("count"), side.cpu() - before
        received = reading.say("finish")
    expect(f"{side.name}: {received} of {streams * events} events", received == streams * events)
    return spent / (last - first)


def lateness(load, side, percent, seconds, kind=None):
    """Milliseconds from the upstream's sending an event until its caller has it, of 100 streams with ten events a second each."""
    with Streams(load, side.address, kind or call(side), f"paced-100-{int(seconds * 10)}") as reading:
        reading.say("open 100")
        time.sleep(0.3 * seconds)  # Past the opening, which is not what is measured.
        reading.say(f"late {percent}")
        time.sleep(0.6 * seconds)
        late = reading.say(f"late {percent}")
        reading.say("finish")
    return late / 1000


def call(side):
    """gRPC, or REST for what only passes it on."""
    return "create" if side.name in ("gateway", "bare") else "sse"


def memory(load, upstream, kind, settle, variables=None):
    """kB of anonymous memory per open stream: what 1,500 more take of a gateway that has 500."""
    gateway = Gateway(upstream, variables)
    taken = []
    try:
        with Streams(load, gateway.address, kind, "paced-1000-100000") as reading:
            opened = 0
            for number in (500, 2000):
                # Not all at once: no more are let through than there may be requests.
                while opened < number:
                    opened += 250
                    reading.say(f"open {opened}")
                time.sleep(settle)  # Until events, or polls, have gone through all of them.
                taken.append(gateway.memory("RssAnon"))
    finally:
        gateway.end()
    return (taken[1] - taken[0]) / 1500


def resident(load, upstream):
    """MB resident, a second after a first call."""
    gateway = Gateway(upstream)
    try:
        latency(load, gateway.address, "get", rate=8, seconds=1)
        return gateway.memory("VmRSS") / 1000
    finally:
        gateway.end()


def latency(load, address, kind, rate, seconds):
    """Milliseconds from when a call was due to its answer, by the percents of calls that took no longer: `p50`, `p99.9` and more."""
    said = _run(load, "latency", "--to", address, "--call", kind, "--thread", THREAD, "--run", RUN_ID, "--rate", str(rate), "--seconds", str(seconds))
    return {name: float(value) for name, value in re.findall(r"(p[\d.]+)=([\d.]+)", said)}


def start(load, upstream):
    """Milliseconds from starting the gateway until it has answered a GetRun."""
    port = free_port()
    command = gateway_command(upstream, port)
    said = _run(load, "start", "--to", f"127.0.0.1:{port}", "--thread", THREAD, "--run", RUN_ID, "taskset", "--cpu-list", str(MEASURED), *command)
    return float(said.split("=")[1])


def _run(*command):
    done = subprocess.run(["taskset", "--cpu-list", str(LOAD), *command], capture_output=True, text=True, timeout=120)
    expect(f"{' '.join(command)}: {done.stderr}", done.returncode == 0)
    return done.stdout
