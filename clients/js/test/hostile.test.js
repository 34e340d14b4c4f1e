// Servers that lie and callers that slip, by a gateway made here whose answers can be anything.

import assert from "node:assert/strict";
import { test } from "node:test";

import { Aes128Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";

import { concat, hex, sha256Hex, toBase64, utf8, varint } from "../dist/bytes.js";
import { loadKeys, preAuthenticationEncoding } from "../dist/dsse.js";
import { checkUrl } from "../dist/exchange.js";
import { Client, ConfigurationError, ServerRefusedError } from "../dist/index.js";
import { verifyPassport } from "../dist/passport.js";
import { decodeResponse, encodeRequest, toTensor } from "../dist/tensors.js";

const suite = new CipherSuite({ kem: new DhkemX25519HkdfSha256(), kdf: new HkdfSha256(), aead: new Aes128Gcm() });
const PROBLEM = { "content-type": "application/problem+json" };
const json = (value) => utf8(JSON.stringify(value));

/** A Binary HTTP response. */
function message(status, content, fields = {}) {
  const part = (bytes) => concat(varint(bytes.length), bytes);
  const lines = concat(...Object.entries(fields).flat().map((text) => part(utf8(text))));
  return concat(varint(1), varint(status), part(lines), part(content));
}

async function keyOf(keyId) {
  const pair = await suite.kem.generateKeyPair();
  const raw = new Uint8Array(await suite.kem.serializePublicKey(pair.publicKey));
  return { keyId, pair, document: Uint8Array.of(0, 41, keyId, 0, 32, ...raw, 0, 4, 0, 1, 0, 1) };
}

/** What fetches, seals and opens as a gateway; `answer` gets the opened message, as latin1. */
async function gateway(answer) {
  const made = { runs: 0, posts: 0, ...(await keyOf(1)) };
  made.fetch = async (url, init) => {
    if (init.method === "GET") return new Response(made.document, { headers: { "content-type": "application/ohttp-keys" } });
    if (++made.posts === made.rotatesAt) Object.assign(made, made.next);
    const { keyId, pair } = made;
    const [header, enc] = [init.body.slice(0, 7), init.body.slice(7, 39)];
    if (header[0] !== keyId) {
      const type = "https://iana.org/assignments/http-problem-types#ohttp-key";
      return new Response(json({ type, title: "The key" }), { status: 422, headers: PROBLEM });
    }
    const info = concat(utf8("message/bhttp request\0"), header);
    const recipient = await suite.createRecipientContext({ recipientKey: pair.privateKey, enc, info });
    const opened = Buffer.from(await recipient.open(init.body.slice(39))).toString("latin1");
    made.runs++;
    const said = await answer(opened, made);
    if (said instanceof Response) return said;
    const nonce = crypto.getRandomValues(new Uint8Array(16));
    const secret = await recipient.export(utf8("message/bhttp response"), 16);
    const ikm = await crypto.subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
    const derive = (label, size) =>
      crypto.subtle.deriveBits({ name: "HKDF", hash: "SHA-256", salt: concat(enc, nonce), info: utf8(label) }, ikm, 8 * size);
    const key = await crypto.subtle.importKey("raw", await derive("key", 16), "AES-GCM", false, ["encrypt"]);
    const sealed = await crypto.subtle.encrypt({ name: "AES-GCM", iv: await derive("nonce", 12) }, key, said);
    return new Response(concat(nonce, new Uint8Array(sealed)), { headers: { "content-type": "message/ohttp-res" } });
  };
  return made;
}

const client = ({ fetch }, options = {}) => new Client({ url: "https://models.example", token: "t", fetch, ...options });

/** Of a model that answers with its rows, as many in a request as told. */
const echo = (rows) => (opened) => {
  if (opened.includes("GET")) {
    const tensor = { datatype: "FP32", shape: [-1, 1] };
    return message(200, json({ inputs: [{ name: "x", ...tensor }], outputs: [{ name: "y", ...tensor }], parameters: { max_rows: rows } }));
  }
  const head = /\{"parameters".*\]\}/.exec(opened);
  const { shape, parameters } = JSON.parse(head[0]).inputs[0];
  const start = head.index + head[0].length;
  const bytes = Buffer.from(opened.slice(start, start + parameters.binary_data_size), "latin1");
  const answer = json({ outputs: [{ name: "y", datatype: "FP32", shape, parameters }] });
  return message(200, concat(answer, bytes), { "inference-header-content-length": `${answer.length}` });
};

test("problems whose members are not text are problems all the same", async () => {
  for (const problem of [{ title: {} }, { title: [{}] }, { detail: {} }, { title: 5, detail: [null, {}] }, { type: {} }]) {
    for (const sealed of [true, false]) {
      const server = await gateway(() => (sealed ? message(403, json(problem), PROBLEM) : new Response(json(problem), { status: 403, headers: PROBLEM })));
      await assert.rejects(client(server).serverMetadata(), (error) => {
        assert.ok(error instanceof ServerRefusedError, `${error}`);
        assert.deepEqual([error.status, error.message, error.sealed, error.type], [403, "403 refused", sealed, "about:blank"]);
        return true;
      });
    }
  }
});

test("as many texts as a tensor may have, and answers in as many pieces as the network likes", async () => {
  const { content, headBytes } = encodeRequest({ x: toTensor("x", Array(200_000).fill("a"), "BYTES") });
  assert.equal(content.length, headBytes + 5 * 200_000);
  let left = 150_000;
  const pieces = () => new ReadableStream({ pull: (to) => (left-- ? to.enqueue(new Uint8Array(1)) : to.close()) });
  const fetch = async () => new Response(pieces(), { headers: { "content-type": "application/ohttp-keys" } });
  await assert.rejects(client({ fetch }, { timeoutS: 3600 }).serverMetadata(), { name: "TransportError", message: /key configuration: more than 65536 bytes/ });
});

test("a bound that is no number, or is misspelt, is an error and bounds nothing by chance", async () => {
  const server = await gateway(() => new Response(json({ title: "Busy" }), { status: 503, headers: { ...PROBLEM, "retry-after": "0" } }));
  for (const [options, message] of [
    [{ maxResponseBytes: NaN }, /^maxResponseBytes: not a number from 0 to /],
    [{ maxResponseBytes: "1" }, /^maxResponseBytes: /],
    [{ maxResponseBytes: -1 }, /^maxResponseBytes: /],
    [{ passportMaxAgeS: NaN }, /^passportMaxAgeS: /],
    [{ chunkedAboveBytes: NaN }, /^chunkedAboveBytes: /],
    ...[0, -1, NaN, Infinity, 1e10, "5", null].map((timeoutS) => [{ timeoutS }, /^timeoutS: not a number from 0.001 to 4294967$/]),
    [{ retry: { maxRetries: NaN } }, /^retry.maxRetries: /],
    [{ retry: { maxWaitS: "1" } }, /^retry.maxWaitS: /],
    [{ retry: { jitter: 2 } }, /^retry.jitter: not a number from 0 to 1$/],
    [{ retry: { maxRetires: 0 } }, /^retry.maxRetires: no such option$/],
    [{ retry: 3 }, /^retry: not an object$/],
  ]) {
    assert.throws(() => client(server, options), (error) => {
      assert.ok(error instanceof ConfigurationError);
      assert.match(error.message, message);
      return true;
    });
  }
  // As many attempts as by default, where one says nothing.
  for (const [retry, posts] of [[{ maxRetries: undefined }, 3], [{ maxWaitS: undefined }, 3], [{ maxRetries: 0 }, 1]]) {
    server.posts = 0;
    await assert.rejects(client(server, { retry }).serverMetadata(), { name: "OverloadedError" });
    assert.equal(server.posts, posts);
  }
  const odd = client(await gateway(echo(1)), { timeoutS: 30.00015 });
  assert.equal((await odd.infer("m", { x: [[1]] })).outputs.y.data[0], 1);
});

test("what is sent is what was given, whatever the caller does with it meanwhile", async () => {
  for (const rows of [8, 1]) {
    const bytes = new Uint8Array(24);
    const given = {
      view: { data: new Float32Array(bytes.buffer, 8, 2), shape: [2, 1] },
      shared: { data: new Float32Array(new SharedArrayBuffer(16), 4, 2), shape: [2, 1] },
      nested: [[1], [2]],
      typed: [Float32Array.of(1), Float32Array.of(2)],
    };
    for (const { data } of [given.view, given.shared]) data.set([1, 2]);
    const change = {
      view: () => (bytes.fill(0), (given.view.shape[0] = 1)),
      shared: () => given.shared.data.fill(0),
      nested: () => (given.nested[0].splice(0, 1, "x"), given.nested.pop()),
      typed: () => given.typed[1].fill(0),
    };
    const asked = client(await gateway(echo(rows)));
    for (const [name, input] of Object.entries(given)) {
      const answer = asked.infer("m", { x: input });
      change[name]();
      assert.deepEqual((await answer).outputs.y, { datatype: "FP32", shape: [2, 1], data: Float32Array.of(1, 2) }, name);
    }
  }
});

test("a hundred requests while keys change: each runs once", async () => {
  const server = await gateway(echo(8));
  const asked = client(server);
  await asked.metadata("m");
  // All are sealed to the first key before one arrives; the 20th finds it gone.
  Object.assign(server, { runs: 0, posts: 0, rotatesAt: 20, next: await keyOf(2) });
  const answers = Array.from({ length: 100 }, async (_, index) => (await asked.infer("m", { x: [[index]] })).outputs.y.data[0]);
  assert.deepEqual(await Promise.all(answers), Array.from({ length: 100 }, (_, index) => index));
  assert.equal(server.runs, 100);
  assert.equal(server.posts, 100 + 81);
});

test("nothing that may have run is sent again", async () => {
  const problem = (status, fields = {}) => message(status, json({ title: "No" }), { ...PROBLEM, ...fields });
  const hour = new Date(Date.now() + 3_600_000).toUTCString();
  const date = json({ type: "https://iana.org/assignments/http-problem-types#date" });
  for (const answer of [
    () => { throw new TypeError("cut"); },
    () => Response.error(),
    () => new Response("", { status: 500 }),
    () => new Response("", { status: 200, headers: { "content-type": "message/ohttp-chunked-res" } }),
    () => new Response(new Uint8Array(64), { headers: { "content-type": "message/ohttp-res" } }),
    // Not sealed: whoever is in between cannot date requests ahead.
    () => new Response(date, { status: 400, headers: { ...PROBLEM, date: hour } }),
    () => new Response(null, { status: 415 }),
    () => problem(500, { "retry-after": "0" }),
    () => problem(503),
    () => problem(429, { "retry-after": "11" }),
    () => problem(401),
    () => message(200, utf8("{")),
    () => utf8("none"),
  ]) {
    const server = await gateway(answer);
    await assert.rejects(client(server).serverMetadata(), { name: /Error$/ });
    assert.equal(server.posts, 1, `${answer}`);
  }
});

test("an abort or the time ends what does not heed signals", async (t) => {
  // Timeouts of signals keep no process running; what hangs here does not either.
  const running = setInterval(() => undefined, 1000);
  t.after(() => clearInterval(running));
  const never = () => new Promise(() => undefined);
  const server = await gateway(echo(1));
  for (const options of [{ token: never }, { fetch: never }]) {
    const stop = new AbortController();
    const asked = client(server, options).serverMetadata({ signal: stop.signal });
    setTimeout(() => stop.abort(new Error("enough")));
    await assert.rejects(asked, /enough/);
    await assert.rejects(client(server, options).serverMetadata({ signal: AbortSignal.abort(new Error("before")) }), /before/);
  }
  const late = client(server, { fetch: never, timeoutS: 0.01 }).serverMetadata();
  await assert.rejects(late, { name: "TransportError", message: /did not answer within 0.01 s/ });
  const failing = client(server, { token: () => Promise.reject(new Error("no token today")) });
  await assert.rejects(failing.serverMetadata({ signal: new AbortController().signal }), /no token today/);
});

test("names and sizes that are traps", () => {
  const answer = (outputs, tail) => {
    const head = utf8(`{"outputs": [${outputs}]}`);
    return decodeResponse(concat(head, tail), head.length);
  };
  const tensor = (name, datatype, shape, size) =>
    `{"name": "${name}", "datatype": "${datatype}", "shape": ${shape}, "parameters": {"binary_data_size": ${size}}}`;
  const trap = answer(tensor("__proto__", "BOOL", "[1]", 1), Uint8Array.of(1));
  assert.deepEqual(Object.keys(trap), ["__proto__"]);
  assert.equal({}.datatype, undefined);
  const four = new Uint8Array(4);
  for (const [outputs, tail] of [
    [tensor("y", "FP32", "[9007199254740991, 9007199254740991]", 4), four],
    [tensor("y", "UINT8", "[4294967296, 4294967296]", 0), four.slice(4)],
    [tensor("y", "FP32", "[9007199254740993]", 4), four],
    [tensor("y", "FP32", "[1e999]", 4), four],
    [tensor("y", "FP32", '["1"]', 4), four],
    [tensor("y", "BOOL", "[1]", 1), Uint8Array.of(2)],
    [tensor("y", "BYTES", "[1]", 4), Uint8Array.of(255, 255, 255, 255)],
    [tensor("y", "BYTES", "[1]", 5), Uint8Array.of(1, 0, 0, 0, 255)],
    [`${tensor("y", "UINT8", "[2]", 2)}, ${tensor("y", "UINT8", "[2]", 2)}`, four],
  ]) {
    assert.throws(() => answer(outputs, tail), { name: "TransportError" }, outputs);
  }
});

test("the mark of an empty query or fragment is not part of a URL", () => {
  for (const mark of ["?", "#", "/?", "/#", "?#"]) assert.equal(checkUrl(`https://m.example${mark}`, "url"), "https://m.example");
});

test("a verdict that is signed and still none", async () => {
  const pair = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign", "verify"]);
  const der = new Uint8Array(await crypto.subtle.exportKey("spki", pair.publicKey));
  const pem = `-----BEGIN PUBLIC KEY-----\n${toBase64(der).replace(/.{64}(?=.)/g, "$&\n")}\n-----END PUBLIC KEY-----\n`;
  const keys = await loadKeys("trustedKeys", pem, undefined);
  const type = "application/vnd.in-toto+json";
  const signed = async (payload) => {
    const how = { name: "ECDSA", hash: "SHA-256" };
    const raw = new Uint8Array(await crypto.subtle.sign(how, pair.privateKey, preAuthenticationEncoding(type, payload)));
    const half = (bytes) => {
      const digits = hex(bytes).replace(/^(00)+/, "");
      const positive = /^[89a-f]/.test(digits) ? `00${digits}` : digits;
      return Uint8Array.of(2, positive.length / 2, ...Buffer.from(positive, "hex"));
    };
    const body = concat(half(raw.subarray(0, 32)), half(raw.subarray(32)));
    const sig = toBase64(Uint8Array.of(0x30, body.length, ...body));
    const verdict = JSON.stringify({
      mediaType: "application/vnd.dev.sigstore.bundle.v0.3+json",
      verificationMaterial: { publicKey: { hint: await sha256Hex(utf8(pem)) } },
      dsseEnvelope: { payloadType: type, payload: toBase64(payload), signatures: [{ sig }] },
    });
    return verifyPassport({ verdict, evidence: {} }, "toy", keys);
  };
  const statement = (verificationResult) =>
    json({
      _type: "https://in-toto.io/Statement/v1",
      subject: [{ name: "toy:1.0.0", digest: { sha256: "0".repeat(64) } }],
      predicateType: "https://slsa.dev/verification_summary/v1",
      predicate: {
        inputAttestations: [],
        timeVerified: "2026-11-30T10:00:00Z",
        policy: { uri: "policy", digest: { sha256: "0".repeat(64) } },
        verificationResult,
      },
    });
  assert.equal((await signed(statement("PASSED"))).model, "toy:1.0.0");
  const refusals = [
    [Uint8Array.of(0xff), /UTF-8/], [statement({}), /the verdict is malformed/], [statement([{}]), /the verdict is/],
    [statement("FAILED"), /the verdict is FAILED/], [utf8('{"_type": 1, "_type": 2}'), /repeats a key/], [utf8("[".repeat(99)), /levels deep/],
  ];
  for (const [payload, message] of refusals) {
    await assert.rejects(signed(payload), { name: "PassportError", message });
  }
});
