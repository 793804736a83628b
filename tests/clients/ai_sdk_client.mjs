// Vercel's AI SDK: words, a stream, a forced call, an object.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateObject, generateText, streamText, tool } from "ai";
import { z } from "zod";

const [url, name] = process.argv.slice(2);
const to = createOpenAICompatible({ name: "here", baseURL: `${url}/v1`, supportsStructuredOutputs: true });
const asked = { model: to(name), prompt: "Is the lamp on?", maxRetries: 0 };
const schema = z.object({ on: z.boolean() });

const { text } = await generateText({ ...asked, maxOutputTokens: 8 });
assert(text);

let streamed = "";
for await (const part of streamText({ ...asked, maxOutputTokens: 8 }).textStream) streamed += part;
assert.equal(streamed, text);

const tools = { lamp: tool({ description: "Switch the lamp", inputSchema: schema }) };
const { toolCalls } = await generateText({ ...asked, maxOutputTokens: 64, tools, toolChoice: "required" });
assert.equal(typeof toolCalls[0].input.on, "boolean");

const { object } = await generateObject({ ...asked, maxOutputTokens: 64, schema });
assert.equal(typeof object.on, "boolean");
console.log("words, stream, call, object");
