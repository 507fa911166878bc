// Pages in a browser against the gateway, from origins that are named and from one that is not.
//
// Arguments: the gateway's binary, the browser's, the folder with the page.
//
// Must hold: nothing of the browser's own protection is turned off but the sandbox around its processes, which needs rights that not every machine
// gives; what a page gets is compared as a whole.

import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { createInterface } from "node:readline";

import { chromium } from "playwright-core";

const [gatewayBinary, browserBinary, folder] = process.argv.slice(2);
const ends = [];
let failed = 0;

/** A server of the page, which is an origin of its own. */
async function origin() {
  const bundle = await readFile(`${folder}/bundle.js`);
  const server = createServer((request, response) => {
    const isBundle = request.url === "/bundle.js";
    response.setHeader("content-type", isBundle ? "text/javascript" : "text/html");
    response.end(isBundle ? bundle : '<!doctype html><link rel="icon" href="data:,"><script src="/bundle.js"></script>');
  });
  await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
  ends.push(() => server.close());
  return `http://127.0.0.1:${server.address().port}`;
}

/** A gateway in front of the embedded API, and how many calls it has counted. */
async function gateway(...flags) {
  const child = spawn(gatewayBinary, ["dev", "--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", ...flags], { stdio: ["ignore", "inherit", "pipe"] });
  const ended = new Promise((done) => child.once("exit", done));
  ends.push(async () => {
    child.kill();
    await ended;
  });
  const started = {
    // A call is counted before its caller has all of its answer.
    async calls() {
      const counts = (await (await fetch(`${started.admin}/metrics`)).text()).matchAll(/^rpc_server_call_duration_seconds_count.* (\d+)$/gm);
      return [...counts].reduce((sum, [, count]) => sum + Number(count), 0);
    },
  };
  await new Promise((listening, refused) => {
    createInterface(child.stderr).on("line", (line) => {
      const [, what, address] = /^(grpc|admin) listening on (.*)$/.exec(line) ?? [];
      if (what === "grpc") started.url = `http://${address}`;
      if (what === "admin") listening((started.admin = `http://${address}`));
    });
    ended.then((code) => refused(new Error(`the gateway ended with ${code}`)));
  });
  return started;
}

async function check(what, act) {
  const begun = Date.now();
  try {
    await act();
    console.log(`passed ${what} (${Date.now() - begun} ms)`);
  } catch (error) {
    failed += 1;
    console.log(`FAILED ${what}\n${error.message}`);
  }
}

async function main() {
  const [named, other, stranger] = [await origin(), await origin(), await origin()];
  const open = await gateway("--web-origins", `${named},${other}`);
  const closed = await gateway();
  const browser = await chromium.launch({ executablePath: browserBinary, args: ["--no-sandbox"] });
  ends.push(() => browser.close());
  console.log(`Chromium ${browser.version()}`);

  /** What `behaviour` gives on a page of `from`, and what the browser says about it. */
  const visit = async (from, { url }, behaviour) => {
    const page = await browser.newPage();
    const said = [];
    page.on("console", (message) => said.push(message.text()));
    try {
      await page.goto(`${from}/?gateway=${encodeURIComponent(url)}`);
      const run = page.evaluate((name) => window.behaviours[name](), behaviour);
      const late = new Promise((_, reject) => setTimeout(() => reject(new Error(`${behaviour} took too long`)), 60_000).unref());
      return { got: await Promise.race([run, late]), said: said.join("\n") };
    } finally {
      await page.close();
    }
  };
  const gives = (from, behaviour, expected) => async () => assert.deepEqual((await visit(from, open, behaviour)).got, expected);

  const created = "THREAD_RUN_CREATED";
  const cancelled = "THREAD_RUN_CANCELLED";
  const types = ["CREATED", "QUEUED", "IN_PROGRESS", "COMPLETED"].map((state) => `THREAD_RUN_${state}`);
  await check("a page gets a run", gives(named, "getARun", { same: true, status: "COMPLETED", requestId: true }));
  const answer = ['This is the embedded model. You said: "Hello from a page!".'];
  const deleted = ["thread.deleted", "assistant.deleted"];
  await check(
    "a page makes all that a run needs and reads its answer",
    gives(named, "fromNothingToAnAnswer", { answer, deleted }),
  );
  await check(
    "events of a stream come while the run goes on",
    gives(other, "streamARun", { several: true, statuses: ["IN_PROGRESS"], types }),
  );
  await check(
    "a stream ends by what the page does after its first event",
    gives(named, "answerTheFirstEvent", { first: created, last: cancelled }),
  );
  await check("so it does as text, with another client", gives(named, "streamAsText", { code: 0, first: created, last: cancelled }));
  await check("an error has its code and details", async () => {
    const { got } = await visit(named, open, "missing");
    const { message, ...rest } = got;
    assert.deepEqual(rest, { code: "NotFound", reason: "NOT_FOUND", field: undefined, requestId: true });
    assert.match(message, /thread_none/);
  });
  await check("a mistake of the page's names its field", async () => {
    const { message, ...rest } = (await visit(named, open, "mistake")).got;
    assert.deepEqual(rest, { code: "InvalidArgument", reason: "INVALID_FIELD", field: "thread_id", requestId: false });
    assert.ok(message.length > 0);
  });
  await check("a page of another origin is refused by the browser, and calls nothing", async () => {
    const before = await open.calls();
    assert.ok(before > 0);
    const { got, said } = await visit(stranger, open, "missing");
    assert.equal(got.message, "Failed to fetch");
    assert.match(said, /blocked by CORS policy/);
    assert.equal(await open.calls(), before);
  });
  await check("without named origins no page is served", async () => {
    const { got } = await visit(named, closed, "missing");
    assert.equal(got.message, "Failed to fetch");
    assert.equal(await closed.calls(), 0);
  });
}

try {
  await main();
} finally {
  for (const end of ends.reverse()) await end();
}
console.log(`${failed} failed`);
process.exitCode = failed > 0 ? 1 : 0;
