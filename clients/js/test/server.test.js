// Against a real server, directly and through nginx as a relay. SERVER is a JSON object that
// tests/clients/js makes: where it is, tokens, keys.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import { test } from "node:test";

import { ml_dsa65 } from "@noble/post-quantum/ml-dsa.js";

import { AuthenticationError, Client, InvalidInputError, KeyRefusedError, metricOf, NotFoundError, OverloadedError } from "../dist/index.js";

const server = JSON.parse(process.env.SERVER);
const { url, token, model } = server;
const rows = { features: [[1, 2, 3], [3, 2, 1]] };

/** The network: what passes is counted, and may be changed on its way. */
function network(change = (answer) => answer) {
  const seen = { keys: 0, sealed: [], bytes: 0 };
  const fetch = async (target, init) => {
    if (init.method === "GET") seen.keys++;
    else seen.sealed.push(init.headers["content-type"]), (seen.bytes += init.body.length);
    return change(await globalThis.fetch(target, init), target, init);
  };
  return { seen, fetch };
}

const client = (options = {}) => new Client({ url, token, ...options });

async function expectAnswer(asked) {
  const { outputs, receipts } = await asked.infer(model, rows);
  assert.deepEqual(outputs.label, { datatype: "INT64", shape: [2], data: BigInt64Array.of(1n, 0n) });
  assert.deepEqual(outputs.probabilities.shape, [2, 2]);
  assert.ok(outputs.probabilities.data instanceof Float32Array);
  assert.match(receipts[0].number, /^[A-Za-z0-9_-]{1,256}$/);
}

async function pinned(kem) {
  const document = new Uint8Array(await (await fetch(`${url}/.well-known/ohttp-gateway`)).arrayBuffer());
  for (let at = 0; at < document.length; ) {
    const size = 2 + document[at] * 256 + document[at + 1];
    if (document[at + 3] * 256 + document[at + 4] === kem) return document.slice(at, at + size);
    at += size;
  }
  assert.fail("not offered");
}

for (const [name, kem] of [["X-Wing", 0x647a], ["X25519", 0x0020]]) {
  for (const chunkedAboveBytes of [null, 0]) {
    for (const relayUrl of [undefined, server.relay]) {
      const how = `${name}, ${chunkedAboveBytes === null ? "whole" : "chunked"}, ${relayUrl ? "by a relay" : "direct"}`;
      test(`inference: ${how}`, async () => {
        const { seen, fetch } = network();
        const keyConfigs = await pinned(kem);
        await expectAnswer(client({ keyConfigs, chunkedAboveBytes, fetch, ...(relayUrl && { relayUrl }) }));
        assert.ok(seen.sealed.includes(chunkedAboveBytes === 0 ? "message/ohttp-chunked-req" : "message/ohttp-req"));
      });
    }
  }
}

test("by default: X-Wing, metadata once, typed arrays alike", async () => {
  const { seen, fetch } = network();
  const asked = client({ fetch });
  await expectAnswer(asked);
  assert.equal(seen.keys, 1);
  assert.equal(seen.sealed.length, 2);
  assert.ok(seen.bytes > 2 * 1120); // an X-Wing key in each
  const data = Float32Array.of(1, 2, 3);
  const { outputs } = await asked.infer(model, { features: { data, shape: [1, 3] } });
  assert.deepEqual([...outputs.label.data], [1n]);
  assert.equal(seen.sealed.length, 3);
});

test("more rows than a request takes go in several", async () => {
  const { seen, fetch } = network();
  const asked = client({ fetch });
  const { parameters } = await asked.metadata(model);
  const count = parameters.max_rows + 1;
  const data = Float32Array.from({ length: 3 * count }, (_, index) => index % 7);
  const { outputs, receipts } = await asked.infer(model, { features: { data, shape: [count, 3] } });
  assert.equal(outputs.label.data.length, count);
  assert.equal(receipts.length, 2);
  assert.equal(seen.sealed.length, 3);
});

test("keys are believed if the pinned identity key signed them", async () => {
  await expectAnswer(client({ identityKeys: server.identity }));
  const mlDsa65 = (signature, message, key) => ml_dsa65.verify(signature, message, key);
  const identityKeys = [server.identity, server.identityMlDsa];
  await expectAnswer(client({ identityKeys, mlDsa65 }));
  const never = client({ identityKeys, mlDsa65: () => false });
  await assert.rejects(never.infer(model, rows), { name: "TransportError", message: /signature does not verify/ });
  const without = client({ identityKeys });
  await assert.rejects(without.infer(model, rows), { name: "ConfigurationError", message: /nothing here verifies ML-DSA-65/ });
});

test("a page whose key was replaced sends nothing", async () => {
  const { seen, fetch } = network();
  const message = /signed keys: no signature by a trusted key/;
  await assert.rejects(client({ identityKeys: server.stranger, fetch }).infer(model, rows), { name: "TransportError", message });
  assert.equal(seen.sealed.length, 0);
});

test("whoever is in between cannot put in keys of their own", async () => {
  const forged = async (answer, target) => {
    if (!target.endsWith("/sealgate-keys")) return answer;
    const envelope = await answer.json();
    const payload = JSON.parse(atob(envelope.payload));
    envelope.payload = btoa(JSON.stringify({ ...payload, keys: btoa("\0") }));
    return new Response(JSON.stringify(envelope), { headers: { "content-type": "application/vnd.dsse.envelope.v1+json" } });
  };
  const { seen, fetch } = network(forged);
  await assert.rejects(client({ identityKeys: server.identity, fetch }).infer(model, rows), { name: "TransportError" });
  assert.equal(seen.sealed.length, 0);
});

test("a passport is verified, and can be required", async () => {
  const passport = await client({ trustedKeys: server.trusted }).passport(model);
  assert.equal(passport.model, `${model}:1.0.0`);
  assert.equal(metricOf(passport, "privacy", "epsilon"), 2.5);
  assert.throws(() => metricOf(passport, "privacy", "delay"), { name: "PassportError" });
  await expectAnswer(client({ trustedKeys: server.trusted, requirePassport: true }));
  const stranger = client({ trustedKeys: server.stranger, requirePassport: true });
  await assert.rejects(stranger.infer(model, rows), { name: "PassportError", message: new RegExp(`^passport of ${model}: `) });
  await assert.rejects(client().passport(model), { name: "PassportError", message: /no trusted key/ });
});

test("refusals are typed, and name the model and the tensor", async () => {
  const asked = client();
  await assert.rejects(asked.infer(model, { features: [[1, 2]] }), (error) => {
    assert.ok(error instanceof InvalidInputError && error.sealed);
    assert.match(error.message, new RegExp(`^${model}: 400 .*input "features": expected FP32\\[-1,3\\], got FP32\\[1,2\\]`));
    assert.equal(error.type, "https://sealgate.dev/problems/invalid-request");
    assert.match(error.requestId, /^[0-9a-f]+$/);
    return true;
  });
  await assert.rejects(asked.infer(model, { wrong: [[1, 2, 3]] }), { name: "InvalidInputError", message: /input "wrong": unknown/ });
  await assert.rejects(asked.infer(model, {}), { name: "InvalidInputError", message: /"features": missing/ });
  await assert.rejects(asked.infer(model, { features: [[1, "2", 3]] }), { name: "TensorError", message: /^input "features"/ });
  await assert.rejects(asked.infer("absent", rows), NotFoundError);
  await assert.rejects(asked.receipt("AAAA"), NotFoundError);
  assert.equal(await asked.ready(model), true);
  assert.equal(await asked.ready("absent"), false);
  assert.equal((await asked.serverMetadata()).name, "sealgate");
});

test("an expired token says since when; a source of tokens is asked for a fresh one", async () => {
  await assert.rejects(client({ token: server.expired }).infer(model, rows), (error) => {
    assert.ok(error instanceof AuthenticationError);
    assert.match(error.message, /; the token expired \d+ seconds ago, at \d{4}-/);
    return true;
  });
  const asked = [];
  const source = async ({ refused }) => {
    asked.push(refused);
    return refused || asked.length > 2 ? token : server.expired;
  };
  await expectAnswer(client({ token: source }));
  assert.deepEqual(asked.slice(0, 2), [false, true]);
  await assert.rejects(client({ token: () => server.expired }).infer(model, rows), AuthenticationError);
});

test("a clock that is hours off costs one more request", async (t) => {
  for (const hours of [-7, 7]) {
    const real = Date.now;
    t.mock.method(Date, "now", () => real() + hours * 3_600_000);
    const { seen, fetch } = network();
    const asked = client({ fetch });
    await expectAnswer(asked);
    assert.equal(seen.sealed.length, 3); // refused, metadata, inference
    // Whether signed keys are of now is for this device's clock to say, and for nobody in between.
    const strict = client({ identityKeys: server.identity });
    const message = /valid (yet|any more): valid from .*; this device's clock says \d{4}-/;
    await assert.rejects(strict.infer(model, rows), { name: "TransportError", message });
    t.mock.restoreAll();
  }
});

test("keys that are gone are asked for again, unless they are pinned", async () => {
  const gone = Uint8Array.of(0, 41, 250, 0, 32, ...new Uint8Array(31).fill(9), 9, 0, 4, 0, 1, 0, 1);
  await assert.rejects(client({ keyConfigs: gone }).infer(model, rows), KeyRefusedError);
  let first = true;
  const { seen, fetch } = network((answer, target, init) => {
    if (init.method !== "GET" || !first) return answer;
    first = false;
    return new Response(gone, { headers: { "content-type": "application/ohttp-keys" } });
  });
  await expectAnswer(client({ fetch }));
  assert.equal(seen.keys, 2);
});

test("the answer of another request does not open", async () => {
  const answers = [];
  const { fetch } = network(async (answer, target, init) => {
    if (init.method === "GET") return answer;
    const type = answer.headers.get("content-type");
    answers.push(await answer.arrayBuffer());
    return new Response(answers[0], { headers: { "content-type": type } });
  });
  for (const chunkedAboveBytes of [null, -1]) {
    answers.length = 0;
    const asked = client({ fetch, chunkedAboveBytes });
    await asked.metadata(model); // the first answer, for its own request
    const message = /does not authenticate/;
    await assert.rejects(asked.infer(model, rows), { name: "TransportError", message });
  }
});

test("answers that are cut, changed or huge", async () => {
  const broken = (change) =>
    network(async (answer, target, init) => {
      if (init.method === "GET") return answer;
      const bytes = change(new Uint8Array(await answer.arrayBuffer()));
      return new Response(bytes, { headers: { "content-type": answer.headers.get("content-type") } });
    });
  for (const chunkedAboveBytes of [null, -1]) {
    const flipped = (bytes) => (bytes[bytes.length >> 1] ^= 1, bytes);
    for (const change of [flipped, (bytes) => bytes.slice(0, -1), () => new Uint8Array(), (bytes) => bytes.slice(0, 20)]) {
      const { fetch } = broken(change);
      await assert.rejects(client({ fetch, chunkedAboveBytes }).serverMetadata(), { name: "TransportError" });
    }
  }
  await assert.rejects(client({ maxResponseBytes: 10 }).serverMetadata(), { name: "TransportError", message: /too long/ });
  const endless = createServer((request, response) => {
    response.writeHead(200, { "content-type": "application/ohttp-keys" });
    const more = () => { while (response.write(new Uint8Array(65536))); };
    response.on("drain", more);
    more();
  });
  await new Promise((ready) => endless.listen(0, "127.0.0.1", ready));
  try {
    const asked = new Client({ url: `http://127.0.0.1:${endless.address().port}`, token });
    await assert.rejects(asked.serverMetadata(), { name: "TransportError", message: /more than 1048576 bytes/ });
  } finally {
    endless.closeAllConnections();
    endless.close();
  }
});

test("offline, silent, aborted", async () => {
  const silent = createServer(() => undefined);
  await new Promise((ready) => silent.listen(0, "127.0.0.1", ready));
  const base = `http://127.0.0.1:${silent.address().port}`;
  try {
    const waiting = new Client({ url: base, token, timeoutS: 0.05 });
    await assert.rejects(waiting.serverMetadata(), { name: "TransportError", message: /did not answer within 0.05 s/ });
    const stop = new AbortController();
    const aborted = client().infer(model, rows, { signal: stop.signal });
    stop.abort(new Error("enough"));
    await assert.rejects(aborted, /enough/);
  } finally {
    silent.closeAllConnections();
    await new Promise((closed) => silent.close(closed));
  }
  await assert.rejects(new Client({ url: base, token }).serverMetadata(), (error) => {
    assert.equal(error.name, "TransportError");
    assert.match(error.message, /cannot be reached .*offline/);
    assert.ok(error.cause instanceof TypeError);
    return true;
  });
});

test("busy servers are asked again, as long as they say, within bounds", async () => {
  const busy = (times, after) => {
    let left = times;
    return network((answer, target, init) => {
      if (init.method === "GET" || left-- <= 0) return answer;
      const headers = { "content-type": "application/problem+json", ...after };
      return new Response('{"title": "The server is busy"}', { status: 503, headers });
    });
  };
  const { seen, fetch } = busy(2, { "retry-after": "0" });
  assert.equal((await client({ fetch }).serverMetadata()).name, "sealgate");
  assert.equal(seen.sealed.length, 3);
  for (const [times, after] of [[3, { "retry-after": "0" }], [1, { "retry-after": "60" }], [1, {}]]) {
    await assert.rejects(client({ fetch: busy(times, after).fetch }).serverMetadata(), OverloadedError);
  }
  const slow = client({ fetch: busy(1, { "retry-after": "9" }).fetch, retry: { jitter: 0 } });
  const stop = new AbortController();
  setTimeout(() => stop.abort(new Error("enough")), 20);
  await assert.rejects(slow.serverMetadata({ signal: stop.signal }), /enough/);
});

test("a gateway without chunks is asked without", async () => {
  const { seen, fetch } = network((answer, target, init) =>
    init.method === "POST" && init.headers["content-type"] === "message/ohttp-chunked-req"
      ? new Response('{"title": "No"}', { status: 415, headers: { "content-type": "application/problem+json" } })
      : answer,
  );
  await expectAnswer(client({ fetch, chunkedAboveBytes: -1 }));
  assert.deepEqual(seen.sealed, ["message/ohttp-chunked-req", "message/ohttp-req", "message/ohttp-req"]);
});
