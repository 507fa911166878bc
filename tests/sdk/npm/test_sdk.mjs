// What the official npm client does with a Runs API, end to end.
//
// The client is pointed at the API by its base URL alone. Each function of `tests` is one test; the first one that fails ends the run.

import assert from "node:assert/strict";

import OpenAI, { BadRequestError, NotFoundError } from "openai";
import { VERSION } from "openai/version";

const WEATHER = {
  type: "function",
  function: {
    name: "get_weather",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
};
const QUESTION = { role: "user", content: "What is the weather in Paris?" };

const client = new OpenAI({ baseURL: process.argv[2], apiKey: "any", maxRetries: 0, timeout: 30_000 });
const { assistants, threads } = client.beta;
const { messages, runs } = threads;

const outputsFor = (run) =>
  run.required_action.submit_tool_outputs.tool_calls.map((call) => ({
    tool_call_id: call.id,
    output: `sunny in ${call.function.arguments}`,
  }));

const answerOn = async (threadId) => (await messages.list(threadId)).data[0].content[0].text.value;

async function all(pages) {
  const found = [];
  for await (const item of pages) found.push(item);
  return found;
}

/** What a stream's helpers make of its events. */
function record(stream) {
  const seen = { text: "", calls: [], message: undefined };
  stream.on("textDelta", (delta, snapshot) => {
    seen.text += delta.value ?? "";
    assert.equal(snapshot.value, seen.text);
  });
  stream.on("toolCallDone", (call) => seen.calls.push(call));
  stream.on("messageDone", (message) => (seen.message = message));
  return seen;
}

const tests = {
  async assistants() {
    const assistant = await assistants.create({ model: "embedded", name: "One", tools: [WEATHER], metadata: { a: "1" } });
    assert.deepEqual(await assistants.retrieve(assistant.id), assistant);
    const changed = await assistants.update(assistant.id, { name: "Two", instructions: "Be kind." });
    assert.deepEqual([changed.name, changed.instructions, changed.metadata], ["Two", "Be kind.", { a: "1" }]);
    assert.deepEqual(changed.tools, assistant.tools);
    assert((await all(assistants.list())).some((it) => it.id === assistant.id));
    assert((await assistants.delete(assistant.id)).deleted);
  },

  async "threads and messages"() {
    const thread = await threads.create({ messages: [QUESTION], metadata: { a: "1" } });
    assert.deepEqual(await threads.retrieve(thread.id), thread);
    assert.deepEqual((await threads.update(thread.id, { metadata: { b: "2" } })).metadata, { b: "2" });
    const made = [];
    for (let at = 0; at < 5; at++) made.push(await messages.create(thread.id, { role: "user", content: `message ${at}` }));
    assert.deepEqual(await messages.retrieve(made[0].id, { thread_id: thread.id }), made[0]);
    // The client follows the pages by itself.
    const newest = (await all(messages.list(thread.id, { limit: 2 }))).map((it) => it.id);
    assert.deepEqual(newest.slice(0, 5), made.map((it) => it.id).reverse());
    assert.equal((await all(messages.list(thread.id, { limit: 2, order: "asc" }))).length, 6);
    assert((await messages.delete(made[0].id, { thread_id: thread.id })).deleted);
    assert((await threads.delete(thread.id)).deleted);
  },

  async "a run is created and polled"() {
    const assistant = await assistants.create({ model: "embedded" });
    const thread = await threads.create({ messages: [QUESTION] });
    const run = await runs.create(thread.id, { assistant_id: assistant.id });
    assert.equal(run.status, "queued");
    assert.equal((await runs.poll(run.id, { thread_id: thread.id })).status, "completed");
    const again = await runs.createAndPoll(thread.id, {
      assistant_id: assistant.id,
      additional_messages: [{ role: "user", content: "And Rome?" }],
    });
    assert.equal(again.status, "completed");
    assert(again.usage.total_tokens > 0);
    assert((await answerOn(thread.id)).includes("And Rome?"));
    assert.deepEqual(await runs.retrieve(again.id, { thread_id: thread.id }), again);
    assert.deepEqual((await all(runs.list(thread.id, { limit: 1 }))).map((it) => it.id), [again.id, run.id]);
    assert.deepEqual((await runs.update(again.id, { thread_id: thread.id, metadata: { a: "1" } })).metadata, { a: "1" });
  },

  async "a run is cancelled"() {
    // Models that heed no metadata stay silent at these words.
    const thread = await threads.create({ messages: [{ role: "user", content: "Take your time." }] });
    const silent = { assistant_id: "asst_embedded", metadata: { "embedded.scenario": "expire" } };
    const run = await runs.create(thread.id, silent);
    assert.equal((await runs.cancel(run.id, { thread_id: thread.id })).status, "cancelling");
    assert.equal((await runs.poll(run.id, { thread_id: thread.id })).status, "cancelled");
  },

  async "tool outputs are submitted"() {
    const thread = await threads.create({ messages: [QUESTION] });
    let run = await runs.createAndPoll(thread.id, { assistant_id: "asst_embedded", tools: [WEATHER] });
    assert.equal(run.status, "requires_action");
    run = await runs.submitToolOutputsAndPoll(run.id, { thread_id: thread.id, tool_outputs: outputsFor(run) });
    assert.equal(run.status, "completed");
    assert((await answerOn(thread.id)).includes('sunny in {"city":"Paris"}'));
    const steps = await all(runs.steps.list(run.id, { thread_id: thread.id, limit: 1 }));
    assert.deepEqual(steps.map((step) => step.type), ["message_creation", "tool_calls"]);
    assert.deepEqual(await runs.steps.retrieve(steps[1].id, { thread_id: thread.id, run_id: run.id }), steps[1]);
    assert(steps[1].step_details.tool_calls[0].function.output.startsWith("sunny"));
  },

  async "errors are of the class that is expected"() {
    await assert.rejects(threads.retrieve("thread_x"), (error) => {
      assert(error instanceof NotFoundError);
      assert.deepEqual([error.status, error.type], [404, "invalid_request_error"]);
      return error.requestID.startsWith("req_");
    });
    await assert.rejects(threads.create({ metadata: { a: 5 } }), (error) => {
      assert(error instanceof BadRequestError);
      return error.code === "invalid_type" && error.param === "metadata.a";
    });
  },

  async "runs are streamed"() {
    const thread = await threads.create({ messages: [QUESTION] });
    const stream = runs.stream(thread.id, { assistant_id: "asst_embedded" });
    const seen = record(stream);
    assert.equal((await stream.finalRun()).status, "completed");
    assert.equal(seen.text, await answerOn(thread.id));
    assert.equal(seen.text, seen.message.content[0].text.value);
    assert.deepEqual((await stream.finalMessages()).map((it) => it.id), [seen.message.id]);
  },

  async "a round of calls is streamed"() {
    const thread = await threads.create({ messages: [QUESTION] });
    const metadata = { "embedded.tool_calls": "2" };
    const stream = runs.stream(thread.id, { assistant_id: "asst_embedded", tools: [WEATHER], metadata });
    const { calls } = record(stream);
    const run = await stream.finalRun();
    assert.equal(run.status, "requires_action");
    const wanted = run.required_action.submit_tool_outputs.tool_calls.map((call) => call.function.arguments);
    assert.deepEqual(calls.map((call) => call.function.arguments), wanted);
    assert.deepEqual(wanted, ['{"city":"Paris"}', '{"city":"Paris"}']);
    const rest = runs.submitToolOutputsStream(run.id, { thread_id: thread.id, tool_outputs: outputsFor(run) });
    const seen = record(rest);
    assert.equal((await rest.finalRun()).status, "completed");
    assert.equal(seen.text, await answerOn(thread.id));
    assert(seen.text.includes("sunny"));
  },

  async "a thread and run is streamed"() {
    const metadata = { "embedded.delay_ms": "5" };
    const stream = threads.createAndRunStream({ assistant_id: "asst_embedded", thread: { messages: [QUESTION] }, metadata });
    const events = (await all(stream)).map((event) => event.event);
    assert.deepEqual(events.slice(0, 2), ["thread.created", "thread.run.created"]);
    assert.equal(events.at(-1), "thread.run.completed");
    assert(events.filter((event) => event === "thread.message.delta").length > 5);
  },
};

for (const [name, test] of Object.entries(tests)) {
  console.log(`${name} ...`);
  await test();
}
console.log(`openai ${VERSION}: ${Object.keys(tests).length} tests passed`);
