// Drives the playground in a browser: node playground.mjs URL FOLDER; prints one JSON object.
import { createRequire } from "node:module";
const { chromium } = createRequire(process.env.PLAYWRIGHT)("playwright-core");
const [url, folder] = process.argv.slice(2);
const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: ["--no-sandbox"] });
const errors = [];

async function open(width, height) {
  const page = await browser.newPage({ viewport: { width, height } });
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.setDefaultTimeout(120000);
  page.on("pageerror", (error) => errors.push(String(error)));
  await page.goto(url);
  await page.waitForFunction(() => document.getElementById("model").textContent.includes("context"));
  return page;
}

async function budget(page, index) {
  await page.evaluate((value) => {
    const slider = document.getElementById("budget");
    slider.value = value;
    slider.dispatchEvent(new Event("input", { bubbles: true }));
  }, index);
}

async function ask(page) {
  const sent = page.waitForRequest((request) => request.url().endsWith("/v1/chat/completions"));
  await page.click("#ask");
  return (await sent).postDataJSON().thinking;
}

const ended = (page) => page.waitForSelector(".rule:not([hidden])").then((rule) => rule.textContent());
const idle = (page) => page.waitForFunction(() => !document.getElementById("ask").disabled);

const page = await open(1280, 900);
await budget(page, 1);
await page.fill("#waits", "2");
await page.fill("#wait-strings", "Hmm");
const thinking = await ask(page);
await ended(page);
await idle(page);
const marks = await page.$$eval(".thought mark", (all) => all.map((mark) => mark.textContent));
const waits = await page.textContent(".counters");

await budget(page, 3);
await page.fill("#min", "100");
await ask(page);
await page.waitForFunction(() => document.querySelector(".thought")?.textContent.length > 3);
await page.click("#now");
const byHand = await ended(page);
await idle(page);

await page.fill("#min", "0");
for (const index of [0, 1, 2]) {
  await budget(page, index);
  await page.click("#add");
}
await page.click("#compare");
await page.waitForSelector("#table:not([hidden])");
const rows = await page.$$eval("#table tbody tr", (all) => all.length);
await page.screenshot({ path: `${folder}/wide.png`, fullPage: true });

const small = await open(360, 740);
await ask(small);
await ended(small);
const fits = await small.evaluate(() => document.documentElement.scrollWidth <= 360);
await small.screenshot({ path: `${folder}/narrow.png`, fullPage: true });
await browser.close();
console.log(JSON.stringify({ thinking, marks, waits, byHand, rows, fits, errors }));
