// openai for Node: thinking, a stream, a named tool, an error.
import OpenAI from "openai";

const client = new OpenAI({ baseURL: process.argv[2] + "/v1", apiKey: "none" });
const base = { model: "fixed", messages: [{ role: "user", content: "What is it?" }] };
const whole = await client.chat.completions.create({ ...base, thinking_token_budget: 40 });
let streamed = "";
let thinking = "";
const stream = await client.chat.completions.create({ ...base, stream: true });
for await (const event of stream) {
  for (const { delta } of event.choices) {
    streamed += delta.content ?? "";
    thinking += delta.reasoning_content ?? "";
  }
}
const tools = [{ type: "function", function: { name: "add", parameters: { type: "object" } } }];
const tool_choice = { type: "function", function: { name: "add" } };
const called = await client.chat.completions.create({ ...base, tools, tool_choice });
let refused = null;
try {
  await client.chat.completions.create({ ...base, thinking_bugdet: 4 });
} catch (error) {
  refused = [error.status, error.param];
}
console.log(JSON.stringify({
  content: whole.choices[0].message.content,
  reasoning: whole.choices[0].message.reasoning,
  tokens: whole.usage.completion_tokens_details.reasoning_tokens,
  streamed, thinking, refused,
  call: called.choices[0].message.tool_calls[0].function,
}));
