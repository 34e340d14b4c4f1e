// The demonstration's page: it seals, asks, opens, and shows what left and what came.

import { Client, metricOf } from "./sealgate.js";

const SHOWN_BYTES = 512;
const FIRST_FIELDS = 6;
const at = (id) => document.getElementById(id);

const context = await (await fetch("context.json")).json();
let lastReceipt;

/** What passes between page and gateway, as a proxy would see it, and may change it. */
async function throughTheProxy(url, init) {
  const response = await fetch(url, init);
  if (init.method !== "POST") return response;
  show("sent", new Uint8Array(init.body));
  const answer = new Uint8Array(await response.arrayBuffer());
  if (at("flip").checked) answer[answer.length - 1] ^= 1;
  show("got", answer);
  return new Response(answer, { status: response.status, headers: response.headers });
}

const client = new Client({
  url: context.url,
  token: context.token,
  identityKeys: context.identityKeys,
  trustedKeys: context.trustedKeys,
  requirePassport: true,
  fetch: throughTheProxy,
});

function show(id, bytes) {
  const hex = Array.from(bytes.subarray(0, SHOWN_BYTES), (byte) => byte.toString(16).padStart(2, "0"));
  at(id).textContent = hex.join(" ") + (bytes.length > SHOWN_BYTES ? " …" : "");
  at(`${id}-size`).textContent = `${bytes.length.toLocaleString("en")} bytes`;
}

function say(text, kind = "") {
  at("state").textContent = text;
  at("state").className = kind;
}

function fields() {
  context.columns.forEach((column, place) => {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "number", step: "any", required: true, id: `column-${place}` });
    input.min = column.low;
    input.max = column.high;
    label.append(column.name, input);
    at(place < FIRST_FIELDS ? "fields" : "more").append(label);
  });
  fill(context.examples[0]);
}

function fill(row) {
  row.forEach((value, place) => (at(`column-${place}`).value = value));
}

function listed(list, pairs) {
  at(list).replaceChildren(
    ...pairs.flatMap(([name, text]) => {
      const [term, value] = [document.createElement("dt"), document.createElement("dd")];
      [term.textContent, value.textContent] = [name, text];
      return [term, value];
    }),
  );
}

async function passport() {
  const found = await client.passport(context.model);
  const metric = (kind, name) => metricOf(found, kind, name);
  listed("passport", [
    ["model", found.model],
    ["privacy", `ε = ${metric("privacy", "epsilon").toFixed(2)} at δ = ${metric("privacy", "delta").toExponential(1)}`],
    [
      "robust accuracy",
      `${metric("robustness", "robust_accuracy").toFixed(3)} under attack, at a radius of ${metric("robustness", "radius")}`,
    ],
    ["membership", `attack’s AUC ${metric("membership", "auc").toFixed(3)}; 0.5 is guessing`],
    ["verdict", `passed ${found.verifiedAt}, policy sha256:${found.policySha256}`],
    ["files", `sha256:${found.modelSha256}`],
  ]);
}

function scores(values) {
  at("scores").tBodies[0].replaceChildren(
    ...context.classes.map((name, place) => {
      const [row, meter] = [document.createElement("tr"), document.createElement("meter")];
      meter.value = values[place];
      meter.setAttribute("aria-label", `${name}: ${values[place].toFixed(3)}`);
      for (const content of [name, values[place].toFixed(3), meter]) row.insertCell().append(content);
      return row;
    }),
  );
}

function clear(text) {
  at("label").textContent = text;
  at("scores").tBodies[0].replaceChildren();
  at("receipt").textContent = "–";
  at("fetch-receipt").disabled = true;
}

async function ask() {
  const row = context.columns.map((_, place) => Number(at(`column-${place}`).value));
  const { outputs, receipts } = await client.infer(context.model, { [context.input]: [row] });
  at("label").textContent = context.classes[Number(outputs.label.data[0])];
  scores(outputs.probabilities.data);
  [lastReceipt] = receipts;
  at("receipt").textContent = lastReceipt?.number ?? "the server keeps no log";
  at("fetch-receipt").disabled = lastReceipt === undefined;
}

/** Runs a step and says how it ended; the form stays usable. */
async function step(doing, work, done) {
  at("ask").disabled = true;
  say(doing);
  try {
    await work();
    say(done, "done");
    return true;
  } catch (error) {
    say(`${error.name}: ${error.message}`, "failed");
    return false;
  } finally {
    at("ask").disabled = false;
  }
}

at("first").addEventListener("click", () => fill(context.examples[0]));
at("second").addEventListener("click", () => fill(context.examples[1]));
at("row").addEventListener("submit", async (event) => {
  event.preventDefault();
  clear("…");
  if (!(await step("Sealing and asking…", ask, "Answered; nobody in between has read it."))) clear("no answer");
});
at("fetch-receipt").addEventListener("click", () =>
  step(
    "Fetching the receipt…",
    async () => {
      const bytes = await client.receipt(lastReceipt);
      const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
      const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
      at("receipt").textContent = `${lastReceipt.number}: ${bytes.length} bytes, sha256:${hex}`;
    },
    "Here is the receipt: proof that the answer is on record.",
  ),
);

fields();
await step("Fetching the model’s passport…", passport, "The passport is verified. Ask.");
