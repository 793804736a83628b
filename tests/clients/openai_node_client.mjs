// openai for JavaScript: a chat, a stream, a forced call, a form, a response.
import assert from "node:assert/strict";
import OpenAI from "openai";

const [url, model] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: "none", maxRetries: 0 });
const messages = [{ role: "user", content: "Is the lamp on?" }];
const schema = { type: "object", properties: { on: { type: "boolean" } }, required: ["on"], additionalProperties: false };

const chat = await client.chat.completions.create({ model, messages, max_tokens: 8 });
assert(chat.choices[0].message.content);

let streamed = "";
for await (const part of await client.chat.completions.create({ model, messages, max_tokens: 8, stream: true })) {
  streamed += part.choices[0]?.delta?.content ?? "";
}
assert.equal(streamed, chat.choices[0].message.content);

const tools = [{ type: "function", function: { name: "lamp", parameters: schema } }];
const called = await client.chat.completions.create({ model, messages, max_tokens: 64, tools, tool_choice: "required" });
assert.equal(typeof JSON.parse(called.choices[0].message.tool_calls[0].function.arguments).on, "boolean");

const response_format = { type: "json_schema", json_schema: { name: "lamp", schema, strict: true } };
const formed = await client.chat.completions.create({ model, messages, max_tokens: 64, response_format });
assert.equal(typeof JSON.parse(formed.choices[0].message.content).on, "boolean");

const response = await client.responses.create({ model, input: "Is the lamp on?", max_output_tokens: 16 });
assert(response.output_text);
console.log("chat, stream, call, form, response");
