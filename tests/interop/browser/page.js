// What a page of another origin can do with the client, and cannot: run by test_browser.py.
import { Client } from "/sealgate.min.js";

const { url, relay, token, expired, model, identity, identityMlDsa, stranger, trusted } = await (await fetch("/context.json")).json();
const rows = { features: [[1, 2, 3], [3, 2, 1]] };
const client = (options = {}) => new Client({ url, token, ...options });
const labels = async (options) => Array.from((await client(options).infer(model, rows)).outputs.label.data, Number);

async function refusal(promise) {
  try {
    await promise;
    return "no error";
  } catch (error) {
    return `${error.name}: ${error.message}`;
  }
}

async function x25519() {
  const document = new Uint8Array(await (await fetch(`${url}/.well-known/ohttp-gateway`)).arrayBuffer());
  for (let at = 0; at < document.length; at += 2 + document[at] * 256 + document[at + 1]) {
    if (document[at + 3] * 256 + document[at + 4] === 0x0020) return document.slice(at, at + 2 + document[at + 1]);
  }
  throw new Error("not offered");
}

const gone = Uint8Array.of(0, 41, 250, 0, 32, ...new Uint8Array(31).fill(9), 9, 0, 4, 0, 1, 0, 1);
const checks = {
  inference: () => labels(),
  x25519: async () => labels({ keyConfigs: await x25519() }),
  chunked: () => labels({ chunkedAboveBytes: -1 }),
  relay: () => labels({ relayUrl: relay }),
  "relay, chunked": () => labels({ relayUrl: relay, chunkedAboveBytes: -1 }),
  pinned: () => labels({ identityKeys: identity }),
  // By WebCrypto, where it has ML-DSA-65.
  "pinned twice": () => labels({ identityKeys: [identity, identityMlDsa] }),
  passport: async () => (await client({ trustedKeys: trusted }).passport(model)).model,
  "a key that was replaced": () => refusal(client({ identityKeys: stranger }).infer(model, rows)),
  "an expired token": () => refusal(client({ token: expired }).infer(model, rows)),
  "a wrong shape": () => refusal(client().infer(model, { features: [[1]] })),
  "a key that is gone": () => refusal(client({ keyConfigs: gone }).infer(model, rows)),
  "a clock that is hours off": async () => {
    const real = Date.now;
    Date.now = () => real() - 5 * 3_600_000;
    try {
      return await labels();
    } finally {
      Date.now = real;
    }
  },
  "plaintext is closed": () => refusal(fetch(`${url}/v2`, { headers: { authorization: `Bearer ${token}` } })),
  "health is closed": () => refusal(fetch(`${url}/v2/health/ready`)),
};

const results = {};
for (const [name, check] of Object.entries(checks)) {
  results[name] = await check().catch((error) => `${error.name}: ${error.message}`);
}
await fetch("/result", { method: "POST", body: JSON.stringify(results) });
