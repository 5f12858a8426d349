"use strict";
// One page about thinking budgets. Text from the model is only ever set as textContent.

const BUDGETS = [0, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, -1];
const MOST_RUNS = 4;
const REASONS = {
  model: "the model ended its thinking",
  budget: "the budget was used up",
  max_tokens: "max_tokens left only the answer",
  context: "the context left only the answer",
  client: "ended by hand",
  none: "thinking was off",
  open: "still open",
};

const $ = (id) => document.getElementById(id);
const number = (id) => Number($(id).value);
const budgetName = (tokens) => (tokens < 0 ? "no limit" : `${tokens} tokens`);

let modelName = "";
let active = []; // runs that are streaming
let compared = []; // settings to compare

function headers() {
  const key = $("key").value;
  return { "content-type": "application/json", ...(key && { authorization: `Bearer ${key}` }) };
}

function settings() {
  const waits = number("waits");
  const texts = $("wait-strings").value.split("\n").filter(Boolean);
  return {
    budget_tokens: BUDGETS[number("budget")],
    ...(number("min") > 0 && { min_tokens: number("min") }),
    ...(waits > 0 && { num_waits: waits, ...(texts.length && { wait_strings: texts }) }),
    max_answer_tokens: number("answer"),
  };
}

function request(thinking) {
  const system = $("system").value.trim();
  return {
    model: modelName,
    messages: [
      ...(system ? [{ role: "system", content: system }] : []),
      { role: "user", content: $("question").value },
    ],
    thinking,
    temperature: number("temperature"),
    seed: number("seed"),
  };
}

function describe(thinking) {
  const parts = [`budget ${budgetName(thinking.budget_tokens)}`];
  if (thinking.min_tokens) parts.push(`at least ${thinking.min_tokens}`);
  if (thinking.num_waits) parts.push(`${thinking.num_waits} × ${(thinking.wait_strings ?? ["Wait"]).join(", ")}`);
  return parts.join(", ");
}

class Run {
  constructor(thinking) {
    this.thinking = thinking;
    this.abort = new AbortController();
    this.id = null;
    this.answer = "";
    this.summary = null;
    this.events = 0;
    this.first = null;
    const article = $("run").content.cloneNode(true).firstElementChild;
    this.part = (name) => article.querySelector(`.${name}`);
    this.part("title").textContent = describe(thinking);
    $("runs").append(article);
  }

  async start() {
    this.begin = performance.now();
    const body = { ...request(this.thinking), stream: true, stream_options: { continuous_usage_stats: true, include_usage: true } };
    const reply = await fetch("/v1/chat/completions", {
      method: "POST", headers: headers(), body: JSON.stringify(body), signal: this.abort.signal,
    });
    if (!reply.ok) throw new Error((await reply.json()).error.message);
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (block.startsWith("data: ") && block !== "data: [DONE]") this.show(JSON.parse(block.slice(6)));
      }
    }
  }

  show(event) {
    if (event.error) throw new Error(event.error.message);
    this.id = event.id;
    const choice = event.choices[0];
    if (choice) {
      const { delta } = choice;
      if (delta.reasoning || delta.content) this.first ??= performance.now();
      if (delta.reasoning) this.think(delta.reasoning, delta.forced);
      if (delta.content) {
        this.answer += delta.content;
        this.part("reply").textContent = this.answer;
      }
      if (choice.finish_reason) this.end(choice);
    }
    if (event.usage) this.count(event.usage);
  }

  think(text, forced) {
    const thought = this.part("thought");
    const follows = thought.scrollTop + thought.clientHeight >= thought.scrollHeight - 30;
    if (forced) {
      const mark = document.createElement("mark");
      mark.textContent = text;
      mark.title = "inserted by budget forcing";
      thought.append(mark);
    } else {
      thought.append(text);
    }
    if (follows) thought.scrollTop = thought.scrollHeight;
  }

  count(usage) {
    const seconds = (performance.now() - this.begin) / 1000;
    const thinking = usage.completion_tokens_details.reasoning_tokens;
    const first = this.first ? `first token after ${((this.first - this.begin) / 1000).toFixed(2)} s` : "";
    const rate = seconds > 0 ? `${(usage.completion_tokens / seconds).toFixed(0)} tokens/s` : "";
    const all = `thinking ${thinking}, all ${usage.completion_tokens}`;
    this.part("counters").textContent = [all, first, rate].filter(Boolean).join(" · ");
    const budget = this.summary?.budget ?? this.thinking.budget_tokens;
    const share = budget > 0 ? Math.min(1, thinking / budget) : 0;
    this.part("used").style.width = `${100 * share}%`;
  }

  end(choice) {
    this.summary = choice.thinking;
    const rule = this.part("rule");
    const { ended_by: by, note, tokens, budget } = choice.thinking;
    const used = budget >= 0 ? `${tokens} of ${budget} tokens` : `${tokens} tokens`;
    rule.textContent = [`${REASONS[by]} (${used})`, note].filter(Boolean).join("; ");
    rule.hidden = false;
  }
}

async function launch(list) {
  $("runs").replaceChildren();
  $("table").hidden = true;
  $("error").hidden = true;
  active = list.map((thinking) => new Run(thinking));
  buttons();
  const all = active;
  const results = await Promise.allSettled(all.map((run) => run.start()));
  const failed = results.find((r) => r.status === "rejected" && r.reason.name !== "AbortError");
  if (failed) complain(failed.reason.message);
  if (active === all) active = [];
  if (all.length > 1) tabulate(all);
  buttons();
}

function tabulate(runs) {
  const rows = runs.filter((run) => run.summary).map((run) => {
    const row = document.createElement("tr");
    const { tokens, forced_tokens: forced, ended_by: by } = run.summary;
    for (const text of [describe(run.thinking), tokens, forced, by, run.answer]) {
      row.insertCell().textContent = text;
    }
    return row;
  });
  $("table").tBodies[0].replaceChildren(...rows);
  $("table").hidden = rows.length === 0;
}

function complain(message) {
  $("error").textContent = message;
  $("error").hidden = false;
}

function buttons() {
  const busy = active.length > 0;
  $("ask").disabled = busy;
  $("compare").disabled = busy || compared.length < 2;
  $("add").disabled = compared.length >= MOST_RUNS;
  $("now").disabled = $("stop").disabled = !busy;
}

async function answerNow() {
  for (const { id } of active.filter((run) => run.id)) {
    await fetch("/v1/chat/completions/control", {
      method: "POST", headers: headers(), body: JSON.stringify({ id, action: "reasoning_end" }),
    });
  }
}

function code() {
  $("budget-text").textContent = budgetName(BUDGETS[number("budget")]);
  const { messages, model, temperature, seed, thinking } = request(settings());
  const body = JSON.stringify({ model, messages, thinking, temperature, seed }, null, 2);
  const key = $("key").value ? ' -H "authorization: Bearer $KEY"' : "";
  const url = location.origin;
  $("curl").textContent =
    `curl ${url}/v1/chat/completions${key} \\\n  -H "content-type: application/json" -d '${body.replaceAll("'", "'\\''")}'`;
  $("python").textContent = [
    "from openai import OpenAI", "",
    `client = OpenAI(base_url="${url}/v1", api_key="${$("key").value ? "..." : "none"}")`,
    "reply = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    `    messages=${JSON.stringify(messages)},`,
    `    temperature=${temperature}, seed=${seed},`,
    `    extra_body={"thinking": ${JSON.stringify(thinking)}},`,
    ")", "message = reply.choices[0].message", "print(message.reasoning, message.content, sep=\"\\n---\\n\")",
  ].join("\n");
}

async function watch() {
  try {
    const reply = await fetch("/metrics", { headers: headers() });
    if (!reply.ok) return;
    const text = await reply.text();
    const read = (name) => Number(text.match(new RegExp(`^${name}\\{[^}]*\\} (\\S+)`, "m"))?.[1] ?? 0);
    const cache = Math.round(100 * read("vllm:kv_cache_usage_perc"));
    $("load").textContent =
      `running ${read("vllm:num_requests_running")} · waiting ${read("vllm:num_requests_waiting")} · cache ${cache} %`;
  } catch {
    $("load").textContent = "the server does not answer";
  }
}

async function connect() {
  const reply = await fetch("/v1/models", { headers: headers() });
  if (!reply.ok) throw new Error("the server needs a key: open “System message, key”");
  const [model] = (await reply.json()).data;
  modelName = model.id;
  $("model").textContent = `${model.id} · context ${model.max_model_len ?? "?"} tokens`;
  const efforts = Object.entries(model.thinking.efforts).map(([name, tokens]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = name;
    button.title = budgetName(tokens);
    button.onclick = () => {
      const at = BUDGETS.findIndex((b) => b === tokens || (b > tokens && tokens >= 0));
      $("budget").value = at < 0 ? BUDGETS.length - 1 : at;
      code();
    };
    return button;
  });
  $("efforts").replaceChildren(...efforts);
  code();
}

function listCompared() {
  $("settings").replaceChildren(...compared.map((thinking) => {
    const item = document.createElement("li");
    item.textContent = describe(thinking);
    return item;
  }));
  buttons();
}

$("form").addEventListener("submit", (event) => { event.preventDefault(); launch([settings()]); });
$("form").addEventListener("input", code);
$("key").addEventListener("change", () => connect().catch((error) => complain(error.message)));
$("stop").onclick = () => active.forEach((run) => run.abort.abort());
$("now").onclick = answerNow;
$("add").onclick = () => { compared.push(settings()); listCompared(); };
$("clear").onclick = () => { compared = []; listCompared(); };
$("compare").onclick = () => launch(compared);
connect().catch((error) => complain(error.message));
watch();
setInterval(watch, 2000);
