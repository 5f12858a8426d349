// @ai-sdk/openai-compatible: text and reasoning, tokens, the budget of a provider's options, a tool.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, streamText, tool } from "ai";

const provider = createOpenAICompatible({ name: "jaxs1", baseURL: process.argv[2] + "/v1" });
const model = provider("fixed");
const prompt = "What is it?";
const providerOptions = { jaxs1: { thinking_token_budget: 0 } };
const whole = await generateText({ model, prompt });
const cut = await generateText({ model, prompt, providerOptions });
const stream = streamText({ model, prompt });
let streamed = "";
for await (const text of stream.textStream) streamed += text;
const schema = jsonSchema({ type: "object", properties: { a: { type: "number" } } });
const called = await generateText({
  model, prompt, toolChoice: { type: "tool", toolName: "add" },
  tools: { add: tool({ description: "Add.", inputSchema: schema }) },
});
console.log(JSON.stringify({
  content: whole.text, reasoning: whole.reasoningText, streamed,
  cut: cut.reasoningText ?? "", answered: cut.text,
  call: called.toolCalls.map(({ toolName, input }) => [toolName, input]),
}));
