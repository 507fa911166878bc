"""The clients: how each is prepared, and what it does.

A language has `run(program, addresses)`, which gives what a program of examples/ prints, and says whether it has the program `approving`; a tool has
`checks(address)`, each of which raises `Failed`.
Must hold: `needs` names all that has to be there already; the rest is installed below `OUT`, pinned.
"""

import difflib
import json
import os
import pathlib
import re
import subprocess

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
OUT = ROOT / "target" / "polyglot"
EXAMPLES = OUT / "examples"
VENV = OUT / "venv" / "bin"
GRPCURL = "v1.9.4"
GHZ = "v0.93.0"

# Go keeps its module cache read-only unless told otherwise, and then nobody can remove target/.
ENVIRONMENT = {
    **os.environ,
    "GOPATH": str(OUT / "go"),
    "GOBIN": str(OUT / "go" / "bin"),
    "GOCACHE": str(OUT / "go" / "cache"),
    "GOFLAGS": "-modcacherw",
    "CARGO_TARGET_DIR": os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target")),
    "PYTHONPATH": str(EXAMPLES / "python"),
    "PATH": f"{VENV}{os.pathsep}{os.environ['PATH']}",
}


class Failed(Exception):
    """A check that failed, with what is to be said about it."""


def command(*words, cwd=ROOT, seconds=900, fails=False):
    """Runs a command and gives what it prints. `fails` is what is expected of its exit code."""
    words = [str(word) for word in words]
    try:
        done = subprocess.run(
            words, cwd=cwd, env=ENVIRONMENT, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired as late:
        raise Failed(f"{' '.join(words)}\nno end after {seconds} s\n{late.stdout or ''}{late.stderr or ''}") from late
    if (done.returncode != 0) != fails:
        raise Failed(f"{' '.join(words)}\nexit code {done.returncode}\n{done.stdout}{done.stderr}"[:8000])
    return done.stdout + (done.stderr if fails else "")


def unless_done(stamp, source, *steps):
    """Does the steps unless they were done for the same source."""
    stamp = OUT / stamp
    text = source.read_text() if isinstance(source, pathlib.Path) else source
    if stamp.exists() and stamp.read_text() == text:
        return
    for step in steps:
        step()
    stamp.write_text(text)


def equal(expected, printed):
    if expected != printed:
        diff = difflib.unified_diff(expected.splitlines(), printed.splitlines(), "expected", "printed", lineterm="")
        raise Failed("\n".join(diff))


def version_in(path, pattern):
    return re.search(pattern, (ROOT / "examples" / path).read_text())[1]


class Python:
    needs = ["python3"]
    client = "Python grpcio"
    approves = True

    def version(self):
        return version_in("python/requirements.txt", r"grpcio==(\S+)")

    def prepare(self):
        folder = EXAMPLES / "python"
        protos = sorted((OUT / "proto").glob("runsgateway/v1/*.proto"))
        outs = [f"--{kind}={folder}" for kind in ("python_out", "pyi_out", "grpc_python_out")]
        command(VENV / "python", "-m", "grpc_tools.protoc", f"-I{OUT / 'proto'}", *outs, *protos)

    def run(self, program, *addresses):
        return command(VENV / "python", f"{program}.py", *addresses, cwd=EXAMPLES / "python", seconds=120)


class Go:
    needs = ["go"]
    client = "Go grpc-go"
    approves = True

    def version(self):
        return version_in("go/go.mod", r"google.golang.org/grpc (\S+)")

    def prepare(self):
        # What `go generate` does, but for buf: there it is built from source first, here it is the same version from the venv.
        command(VENV / "buf", "generate", cwd=EXAMPLES / "go")
        command("go", "vet", "./...", cwd=EXAMPLES / "go")

    def run(self, program, *addresses):
        package = "." if program == "example" else f"./{program}"
        return command("go", "run", package, *addresses, cwd=EXAMPLES / "go", seconds=300)


class TypeScript:
    needs = ["node", "npm"]
    client = "TypeScript @grpc/grpc-js"
    approves = False

    def version(self):
        return version_in("typescript/package.json", r'"@grpc/grpc-js": "(\S+)"')

    def prepare(self):
        folder = EXAMPLES / "typescript"
        # Not `npm ci`: it wants buf's packages for all platforms in the lock file, and not every registry has them all.
        install = ["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"]
        unless_done("npm.stamp", ROOT / "examples/typescript/package-lock.json", lambda: command(*install, cwd=folder))
        command("npm", "run", "prepare", cwd=folder)

    def run(self, program, *addresses):
        return command("node", f"build/{program}.js", *addresses, cwd=EXAMPLES / "typescript", seconds=120)


class Java:
    needs = ["java", "javac", "mvn"]
    client = "Java grpc-java"
    approves = False

    def version(self):
        return version_in("java/pom.xml", r"<grpc.version>(\S+)<")

    def prepare(self):
        command("mvn", "-q", "-B", "compile", cwd=EXAMPLES / "java")

    def run(self, program, *addresses):
        main = f"-Dexec.mainClass=io.runsgateway.example.{program.capitalize()}"
        words = ["mvn", "-q", "-B", "-Dstyle.color=never", "exec:java", main, f"-Dexec.args={' '.join(addresses)}"]
        return re.sub(r"\x1b\[[\d;]*m", "", command(*words, cwd=EXAMPLES / "java", seconds=300))


class Rust:
    needs = ["cargo"]
    client = "Rust tonic"
    approves = False

    def version(self):
        return version_in("rust/Cargo.toml", r'tonic = \{ version = "=([^"]+)"')

    # Where it is: it has no stubs of its own, but the gateway's library.
    folder = ROOT / "examples" / "rust"

    def prepare(self):
        command("cargo", "build", "--locked", cwd=self.folder)

    def run(self, program, *addresses):
        binary = {"example": "runs-gateway-example"}.get(program, program)
        return command("cargo", "run", "-q", "--locked", "--bin", binary, "--", *addresses, cwd=self.folder, seconds=300)


LANGUAGES = [Python(), Go(), TypeScript(), Java(), Rust()]


class Grpcurl:
    needs = ["go"]
    client = "grpcurl"

    def version(self):
        return GRPCURL

    def prepare(self):
        package = f"github.com/fullstorydev/grpcurl/cmd/grpcurl@{GRPCURL}"
        unless_done("grpcurl.stamp", GRPCURL, lambda: command("go", "install", package))

    def checks(self, dev):
        def call(method, fails=False, **request):
            words = [OUT / "go/bin/grpcurl", "-plaintext", "-d", json.dumps(request), dev, f"runsgateway.v1.{method}"]
            return command(*words, seconds=60, fails=fails)

        def expect(text, *wanted):
            for word in wanted:
                if word not in text:
                    raise Failed(f"{word} is not in\n{text}")

        thread = {"messages": [{"role": "MESSAGE_ROLE_USER", "content": {"text": "Hello!"}}]}
        spec = {"thread_and_run": {"assistant_id": "asst_embedded", "thread": thread}}

        def readme():
            """The README's seven lines, as they stand but for the gateway's address."""
            readme = (ROOT / "README.md").read_text()
            introduction = "From nothing to the printed answer, in seven lines:\n\n```sh\n"
            lines = readme.split(introduction)[1].split("```")[0]
            equal("7", str(lines.count("\n")))
            script = f"set -euo pipefail\nPATH={OUT}/go/bin:$PATH\n" + lines.replace("localhost:50051", dev)
            printed = command("bash", "-c", script, seconds=60)
            expect(printed, "RUN_STATUS_COMPLETED", '"object": "thread.deleted"')
            answers = re.findall(r'"value": "(.*)"', printed)
            # The question, as it was made, and the answer.
            said = ["Hello", r'This is the embedded model. You said: \"Hello\".']
            equal(json.dumps(said), json.dumps(answers))

        def reflection():
            services = command(OUT / "go/bin/grpcurl", "-plaintext", dev, "list", seconds=60)
            contract = "".join(path.read_text() for path in (OUT / "proto").glob("runsgateway/v1/*.proto"))
            names = re.findall(r"^service (\w+)", contract, re.MULTILINE)
            expect(services, "grpc.health.v1.Health", *(f"runsgateway.v1.{name}" for name in names))
            described = command(OUT / "go/bin/grpcurl", "-plaintext", dev, "describe", "runsgateway.v1.RunService.WaitRun", seconds=60)
            expect(described, "REST: GET /threads/{thread_id}/runs/{run_id}")

        def unary():
            run = json.loads(call("RunService/CreateThreadAndRun", **spec))
            where = {"thread_id": run["threadId"], "run_id": run["id"]}
            expect(call("RunService/WaitRun", **where), "RUN_STATUS_COMPLETED")
            expect(call("RunStepService/ListRunSteps", **where), "RUN_STEP_TYPE_MESSAGE_CREATION")

        def streams():
            expect(call("RunService/StreamCreateThreadAndRun", **spec), "RUN_EVENT_TYPE_THREAD_RUN_COMPLETED")

        def error_details():
            missing = call("RunService/GetRun", fails=True, thread_id="thread_x", run_id="run_x")
            expect(missing, "Code: NotFound", '"@type": "type.googleapis.com/google.rpc.ErrorInfo"', '"reason": "NOT_FOUND"')

        return {"the README's lines": readme, "reflection": reflection, "unary": unary, "streams": streams, "error details": error_details}


class Ghz:
    needs = ["go"]
    client = "ghz"
    calls = 1000

    def version(self):
        return GHZ

    def prepare(self):
        unless_done("ghz.stamp", GHZ, lambda: command("go", "install", f"github.com/bojand/ghz/cmd/ghz@{GHZ}"))

    def checks(self, dev):
        def load():
            thread = {"messages": [{"role": "MESSAGE_ROLE_USER", "content": {"text": "Hello!"}}]}
            request = {"thread_and_run": {"assistant_id": "asst_embedded", "thread": thread}}
            call = ["--insecure", "--call", "runsgateway.v1.RunService.CreateThreadAndRun", "-d", json.dumps(request)]
            report = command(OUT / "go/bin/ghz", *call, "-n", self.calls, "-c", 20, "--connections", 4, "-O", "json", dev, seconds=120)
            equal(json.dumps({"OK": self.calls}), json.dumps(json.loads(report)["statusCodeDistribution"]))

        return {f"{self.calls} calls, 20 at a time": load}


class Sdk:
    """An official client of the REST API, which speaks to the embedded one directly. Its script says what is missing."""

    def __init__(self, client, needs, script, version):
        self.client, self.needs, self.script, self.version = client, needs, ROOT / "tests/sdk" / script, version
        self.made = "none"

    def prepare(self):
        pass

    def checks(self, url):
        def tests():
            self.made = re.search(r"(\d+ tests) passed", command("bash", self.script, url, seconds=300))[1]

        return {"its own tests": tests}


def sdk_version(path, pattern):
    return lambda: re.search(pattern, (ROOT / "tests/sdk" / path).read_text())[1]


SDKS = [
    Sdk("openai (PyPI)", ["python3"], "run", sdk_version("requirements.txt", r"openai==(\S+)")),
    Sdk("openai (npm)", ["node", "npm"], "npm/run", sdk_version("npm/package.json", r'"openai": "(\S+)"')),
]
TOOLS = [Grpcurl(), Ghz()]
