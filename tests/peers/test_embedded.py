"""A tester of APIs that nobody here wrote (schemathesis) in front of `dev --rest-listen`, with the built-in model and with one of a
chat-completions server. `run`, beside this file, prepares all that this needs.

Must hold: whatever the published document allows or forbids, no answer is of status 500 or above, or breaks the document.
"""

import json
import os
import subprocess
import sys
import urllib.request

from test_models import Model
from test_peers import SCHEMA, Process, run_tests

CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance"


class Dev(Process):
    def __init__(self, *flags):
        words = ["dev", "--log", "warn", "--listen", "127.0.0.1:0", "--rest-listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", *flags]
        super().__init__(r"rest listening on (\S+)", os.environ["RUNS_GATEWAY_BIN"], *words)


def document(thread_id):
    """The document as a file, with an assistant and a thread that are there: else hardly a run would be made."""
    schema = json.loads(json.dumps(SCHEMA))
    schemas = schema["components"]["schemas"]
    for name, of in schemas.items():
        # It has no form for the ids of an empty page, for which services send null.
        for member in ("first_id", "last_id") if name.startswith("List") else ():
            of["properties"][member]["type"] = ["string", "null"]
    for name in ("CreateRunRequest", "CreateThreadAndRunRequest"):
        schemas[name]["properties"]["assistant_id"]["enum"] = ["asst_embedded"]
    for operations in schema["paths"].values():
        for method, operation in operations.items():
            for parameter in operation.get("parameters", []):
                if parameter["name"] == "thread_id" and method != "delete":
                    parameter["schema"]["enum"] = [thread_id]
    path = os.path.join(os.environ["PEERS_OUT"], "document.json")
    with open(path, "w") as file:
        json.dump(schema, file)
    return path


def post(url, body):
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def hold(dev):
    """Sends what the tester thinks of to every operation: each value at its limits and beyond, and some at random."""
    url = f"http://{dev.found[1]}/v1"
    thread = post(f"{url}/threads", {"messages": [{"role": "user", "content": "hello"}]})
    command = [
        os.path.join(os.path.dirname(sys.executable), "schemathesis"),
        *("run", document(thread["id"]), "--url", url, "--header", "Authorization: Bearer any"),
        *("--checks", CHECKS, "--max-examples", "3", "--seed", "1", "--suppress-health-check", "all"),
        *("--warnings", "off", "--request-timeout", "10"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=os.environ["PEERS_OUT"], timeout=300)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
    operations = len([method for path in SCHEMA["paths"].values() for method in path if method != "parameters"])
    assert f"Tested: {operations}" in done.stdout, done.stdout[-2000:]


def test_no_answer_of_the_built_in_model_breaks_the_document(built_in, _model, _on_model):
    hold(built_in)


def test_no_answer_of_a_served_model_breaks_the_document(_built_in, model, on_model):
    hold(on_model)
    # Else the test above would prove nothing.
    asked = json.loads(model.ask("GET", "/__aimock/journal"))
    assert any(entry["response"]["status"] == 200 for entry in asked), asked[:1]


def start(started):
    built_in = Dev()
    started.append(built_in)
    model = Model("models.json", "anything.json")
    started.append(model)
    on_model = Dev("--model-url", f"{model.found[1]}/v1", "--max-retries", "0")
    started.append(on_model)
    return built_in, model, on_model


if __name__ == "__main__":
    sys.exit(1 if run_tests(globals(), start) else 0)
