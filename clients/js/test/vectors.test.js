// What others published or wrote: the RFCs' examples, and what this project's Python signs,
// seals and refuses. VECTORS is a file that tests/clients/js makes, SHARED the folder of
// published vectors where there is one.

import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { ml_dsa65 } from "@noble/post-quantum/ml-dsa.js";

import { decodeResponse, encodeRequest } from "../dist/bhttp.js";
import { fromHex, hex, latin1, readVarint, utf8, varint } from "../dist/bytes.js";
import { loadKeys } from "../dist/dsse.js";
import { parseObject } from "../dist/json.js";
import { chooseConfig } from "../dist/keyconfig.js";
import { seal, sealChunked } from "../dist/ohttp.js";
import { paddedSize } from "../dist/padding.js";
import { verifyPassport } from "../dist/passport.js";
import { verifySignedKeys } from "../dist/signedkeys.js";
import { decodeResponse as decodeTensors, encodeRequest as encodeTensors, numbersOf, toTensor } from "../dist/tensors.js";

const python = JSON.parse(readFileSync(process.env.VECTORS, "utf8"));
const shared = process.env.SHARED ?? "";
const published = (name) => JSON.parse(readFileSync(join(shared, "vectors-ohttp", name), "utf8"));
const missing = existsSync(join(shared, "vectors-ohttp")) ? false : "the published vectors are not on this machine";
const verifier = (signature, message, key) => ml_dsa65.verify(signature, message, key);
const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

/** The client's ephemeral key of a published example. */
async function ephemeral(example) {
  const d = fromHex(example.client_ephemeral_secret_key);
  const prefix = fromHex("302e020100300506032b656e04220420");
  const x25519 = { name: "X25519" };
  const privateKey = await crypto.subtle.importKey("pkcs8", new Uint8Array([...prefix, ...d]), x25519, true, ["deriveBits"]);
  const publicKey = await crypto.subtle.importKey("raw", fromHex(example.client_ephemeral_public_key), x25519, true, []);
  return { privateKey, publicKey };
}

function listed(config) {
  const item = fromHex(config);
  return new Uint8Array([item.length >> 8, item.length & 255, ...item]);
}

test("RFC 9458, appendix A: the request is sealed so, and the response opens", { skip: missing }, async () => {
  const example = published("rfc9458_example.json");
  const config = chooseConfig(listed(example.key_config));
  const sealed = await seal(config, fromHex(example.request_bhttp), await ephemeral(example));
  assert.equal(hex(sealed.content), example.encapsulated_request);
  assert.equal(hex(await sealed.open(fromHex(example.encapsulated_response))), example.response_bhttp);
});

test("draft-ietf-ohai-chunked-ohttp: both directions of its example", { skip: missing }, async () => {
  const example = published("chunked_ohttp_example.json");
  const config = chooseConfig(listed(example.key_config));
  const sizes = example.request_chunk_plaintext_lengths.slice(0, -1);
  const sealed = await sealChunked(config, fromHex(example.request_bhttp), await ephemeral(example), sizes);
  assert.equal(hex(sealed.content), example.encapsulated_request);
  const response = fromHex(example.encapsulated_response);
  assert.equal(hex(await sealed.open(response)), example.response_bhttp);
  for (let size = 0; size < response.length; size++) {
    await assert.rejects(sealed.open(response.subarray(0, size)), { name: "TransportError" });
  }
});

test("RFC 9292, section 5: the responses in both framings", { skip: missing }, () => {
  const { binary } = published("rfc9292_bhttp_examples.json");
  const responses = binary.map((item) => fromHex(item.hex)).filter((message) => message[0] === 1 || message[0] === 3);
  assert.ok(responses.length >= 2);
  for (const message of responses) assert.equal(decodeResponse(message, 1000).status, 200);
  const informational = responses.map((message) => decodeResponse(message, 1000)).find(({ fields }) => fields.length > 5);
  assert.match(latin1(informational.content), /^Hello World! My content/);
});

test("RFC 9292, section 5: the requests are what their text says", { skip: missing }, () => {
  const { binary } = published("rfc9292_bhttp_examples.json");
  const known = binary.map((item) => item.hex).find((text) => text.startsWith("00"));
  const fields = [
    ["user-agent", "curl/7.16.3 libcurl/7.16.3 OpenSSL/0.9.7l zlib/1.2.3"],
    ["host", "www.example.com"],
    ["accept-language", "en, mi"],
  ];
  const request = { method: "GET", scheme: "https", authority: "", path: "/hello.txt", fields, content: new Uint8Array() };
  // The example leaves out an empty content and empty trailers.
  assert.ok(hex(encodeRequest(request)).startsWith(known.replace(/(00)*$/, "")));
});

test("variable-length integers of RFC 9000, appendix A.1", () => {
  for (const [text, value] of [["9d7f3e7d", 494878333], ["7bbd", 15293], ["25", 37]]) {
    assert.equal(hex(varint(value)), text);
    assert.deepEqual(readVarint(fromHex(text), 0), [value, text.length / 2]);
  }
  assert.deepEqual(readVarint(fromHex("4025"), 0), [37, 2]);
  assert.equal(readVarint(fromHex("9d7f3e"), 0), undefined);
  assert.equal(hex(varint(2 ** 32)), "c000000100000000");
});

test("messages that break Binary HTTP are refused as Python refuses them", () => {
  assert.ok(python.bhttp.length >= 8);
  for (const { message, expected } of python.bhttp) {
    assert.throws(() => decodeResponse(bytes(message), 1 << 20), { name: "TransportError" }, expected);
  }
  for (const { message, status, content } of python.responses) {
    const response = decodeResponse(bytes(message), 1 << 20);
    assert.equal(response.status, status);
    assert.equal(latin1(response.content), content);
  }
});

test("requests align tensors as Python's do, to the byte", () => {
  for (const { align, message } of python.requests) {
    const fields = [["date", "Thu, 01 Jan 1970 00:00:00 GMT"]];
    const content = utf8("0123456789abcdef");
    const request = { method: "POST", scheme: "https", authority: "models.example", path: "/v2", fields, content };
    assert.equal(hex(encodeRequest(request, align)), message, `align ${align}`);
  }
});

test("messages are padded to Python's buckets", () => {
  for (const [size, padded] of python.padding) assert.equal(paddedSize(size), padded);
});

test("strict JSON is what Python takes, and nothing else", () => {
  for (const text of python.json.good) parseObject(utf8(text), 1 << 20);
  for (const text of python.json.bad) assert.throws(() => parseObject(bytes(text), 1 << 20), SyntaxError, atob(text));
});

for (const { name, envelope, keys, now, version, document, error } of python.signedKeys) {
  test(`signed keys: ${name}`, async () => {
    const trusted = await loadKeys("identityKeys", keys, verifier);
    const verified = verifySignedKeys(bytes(envelope), trusted, now, version);
    if (error === null) assert.deepEqual((await verified).document, bytes(document));
    else await assert.rejects(verified, (thrown) => thrown.constructor.name === "StatementError");
  });
}

for (const { name, document, model, keys, reports, error } of python.passports) {
  test(`passport: ${name}`, async () => {
    const verified = verifyPassport(document, model, await loadKeys("trustedKeys", keys, verifier));
    if (error !== null) {
      await assert.rejects(verified, { name: "PassportError" });
      return;
    }
    const passport = await verified;
    assert.deepEqual(Object.keys(passport.reports).sort(), reports);
    assert.match(passport.modelSha256, /^[0-9a-f]{64}$/);
  });
}

test("numbers become FP16 and BF16 as numpy rounds them", () => {
  for (const datatype of ["FP16", "BF16"]) {
    const { numbers, bits, back } = python[datatype];
    const tensor = toTensor("x", Float64Array.from(numbers), datatype);
    assert.deepEqual([...tensor.data], bits);
    assert.deepEqual([...numbersOf(tensor)], back);
  }
});

test("tensors of every datatype have Python's bytes, and come back", () => {
  assert.equal(python.tensors.length, 14);
  for (const { datatype, shape, values, packed } of python.tensors) {
    const data = /64$/.test(datatype) && datatype !== "FP64" ? values.map(BigInt) : values;
    const tensor = toTensor("x", { data, shape }, datatype);
    const { content, headBytes } = encodeTensors({ x: tensor });
    assert.equal(hex(content.subarray(headBytes)), packed, datatype);
    const head = JSON.parse(latin1(content.subarray(0, headBytes)));
    const answer = utf8(JSON.stringify({ outputs: head.inputs }));
    const { x } = decodeTensors(new Uint8Array([...answer, ...fromHex(packed)]), answer.length);
    assert.deepEqual(x, tensor, datatype);
  }
});
