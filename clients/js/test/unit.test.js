// Bad input, and what this package promises without a server.

import assert from "node:assert/strict";
import { test } from "node:test";

import * as sealgate from "../dist/index.js";
import { checkUrl, modelPath, refusal, timeOf } from "../dist/exchange.js";
import { chooseConfig, KEM_X25519, KEM_XWING } from "../dist/keyconfig.js";
import { decodeResponse, joined, rowsFrom, toTensor } from "../dist/tensors.js";
import { utf8 } from "../dist/bytes.js";

const { Client, TensorError } = sealgate;

function refused(message, ...input) {
  assert.throws(() => toTensor("x", ...input), (error) => {
    assert.ok(error instanceof TensorError);
    assert.match(error.message, /^input "x": /);
    assert.match(error.message, message);
    return true;
  });
}

test("rows, and values with their shape", () => {
  assert.deepEqual(toTensor("x", [[1, 2], [3, 4.5]], "FP32"), {
    datatype: "FP32",
    shape: [2, 2],
    data: Float32Array.of(1, 2, 3, 4.5),
  });
  const data = Float32Array.of(1, 2, 3);
  assert.equal(toTensor("x", { data, shape: [1, 3] }, "FP32").data, data);
  assert.deepEqual(toTensor("x", [data, data], "FP32").shape, [2, 3]);
  assert.deepEqual(toTensor("x", [[true], [false]], "BOOL").data, Uint8Array.of(1, 0));
  assert.deepEqual(toTensor("x", [1, -2n], "INT64").data, BigInt64Array.of(1n, -2n));
  assert.deepEqual(toTensor("x", Int32Array.of(7), "INT64").data, BigInt64Array.of(7n));
  assert.deepEqual(toTensor("x", ["é", utf8("ü")], "BYTES").data, ["é", "ü"]);
  assert.deepEqual(toTensor("x", Uint16Array.of(0x3c00), "FP16").data, Uint16Array.of(0x3c00));
  assert.deepEqual(toTensor("x", { data: [], shape: [0, 3] }, "FP32").data, new Float32Array());
});

test("without metadata a tensor is what its values are", () => {
  const natural = (input) => toTensor("x", input).datatype;
  assert.equal(natural([1.5]), "FP64");
  assert.equal(natural([1n]), "INT64");
  assert.equal(natural(["a"]), "BYTES");
  assert.equal(natural([true]), "BOOL");
  assert.equal(natural(Uint8Array.of(1)), "UINT8");
  assert.equal(natural(Float32Array.of(1)), "FP32");
  refused(/cannot be told/, [1, "a"]);
});

test("wrong shapes name the tensor", () => {
  refused(/rows are not of one length/, [[1, 2], [3]], "FP32");
  refused(/rows are not of one length/, [[1], 2], "FP32");
  refused(/expected 60 values for shape \[2,30\], got 59/, { data: new Float32Array(59), shape: [2, 30] }, "FP32");
  refused(/shape is not an array of sizes/, { data: [1], shape: [-1] }, "FP32");
  refused(/shape is not an array of sizes/, { data: [1], shape: [1.5] }, "FP32");
  refused(/shape is not an array of sizes/, { data: [1], shape: "1" }, "FP32");
  refused(/expected arrays/, 5, "FP32");
  refused(/expected arrays/, null, "FP32");
  refused(/expected arrays/, { data: [1] }, "FP32");
  refused(/data is not an array/, { data: "1", shape: [1] }, "FP32");
  refused(/data is not an array/, { data: new DataView(new ArrayBuffer(1)), shape: [1] }, "FP32");
  let deep = [1];
  for (let depth = 0; depth < 16; depth++) deep = [deep];
  refused(/rows are not of one length/, deep, "FP32");
});

test("wrong types name the tensor and the place", () => {
  refused(/values are not FP32 \(index 1\)/, [1, "2"], "FP32");
  refused(/values are not FP32 \(index 0\)/, [true], "FP32");
  refused(/values are not FP32 \(index 0\)/, [null], "FP32");
  refused(/values are not FP32 \(index 1\)/, [1, , 3], "FP32"); // eslint-disable-line no-sparse-arrays
  refused(/values are not INT64 \(index 0\)/, ["1"], "INT64");
  refused(/values are not BOOL \(index 1\)/, [true, 1], "BOOL");
  refused(/values are not BOOL \(index 1\)/, Uint8Array.of(1, 2), "BOOL");
  refused(/values are not BYTES \(index 0\)/, [5], "BYTES");
  refused(/values are not BYTES/, Uint8Array.of(1), "BYTES");
  refused(/not UTF-8 \(index 0\)/, [Uint8Array.of(0xff)], "BYTES");
  refused(/Float32Array cannot be sent as INT64/, Float32Array.of(1), "INT64");
  refused(/Float64Array cannot be sent as BOOL/, Float64Array.of(1), "BOOL");
  refused(/INT8 given, the model takes FP32/, { data: [1], shape: [1], datatype: "INT8" }, "FP32");
  refused(/the model takes FP8, which is not known here/, [1], "FP8");
  refused(/unknown datatype/, { data: [1], shape: [1], datatype: "FP31" }, "FP32");
});

test("values out of range, and numbers that are none", () => {
  for (const [datatype, value] of [
    ["INT8", 128], ["INT8", 1.5], ["UINT8", -1], ["UINT32", 2 ** 32], ["INT64", 2 ** 53], ["INT64", 2n ** 63n],
    ["UINT64", -1], ["UINT64", -1n], ["FP32", 1e39], ["FP16", 65520], ["BF16", 3.4e38], ["FP16", -1e9],
  ]) {
    refused(new RegExp(`a value is out of range for ${datatype} \\(index 1\\)`), [1, value].map((v) => (datatype.endsWith("64") && typeof value === "bigint" ? BigInt(v) : v)), datatype);
  }
  for (const value of [NaN, Infinity, -Infinity]) {
    for (const datatype of ["FP32", "FP64", "FP16", "BF16", "INT64", "UINT8"]) {
      refused(/a value is not finite \(index 2\)/, [1, 2, value], datatype);
    }
  }
  // Bytes pass as they are: whoever fills a typed array means it.
  assert.ok(Number.isNaN(toTensor("x", Float32Array.of(NaN), "FP32").data[0]));
  assert.equal(toTensor("x", Float64Array.of(Infinity), "FP32").data[0], Infinity);
  refused(/out of range for FP32 \(index 0\)/, Float64Array.of(1e39), "FP32");
});

test("answers that are not what they say", () => {
  const output = { name: "y", datatype: "FP32", shape: [1], parameters: { binary_data_size: 4 } };
  const answer = (change, tail = 4) => {
    const head = utf8(JSON.stringify({ outputs: [{ ...output, ...change }] }));
    return () => decodeResponse(new Uint8Array([...head, ...new Uint8Array(tail)]), head.length);
  };
  assert.deepEqual(answer({})().y.data, Float32Array.of(0));
  for (const [change, tail] of [
    [{}, 3], [{}, 5], [{ shape: [2] }], [{ shape: [-1] }], [{ shape: 1 }], [{ shape: [1e300] }], [{ datatype: "X" }],
    [{ datatype: "toString" }], [{ name: 5 }], [{ parameters: { binary_data_size: 1e15 } }], [{ parameters: {} }],
    [{ parameters: null }], [{ datatype: "BYTES", shape: [2] }], [{ datatype: "BYTES", shape: [1e6] }],
    [{ datatype: "BYTES", shape: [0] }],
  ]) {
    assert.throws(answer(change, tail), { name: "TransportError" }, JSON.stringify(change));
  }
  for (const text of ["", "null", "[]", "{}", '{"outputs": 5}', '{"outputs": [null]}', '{"outputs": [[]]}', "\xff"]) {
    assert.throws(() => decodeResponse(utf8(text), text.length), { name: "TransportError" }, text);
  }
});

test("rows of several requests", () => {
  const x = toTensor("x", [[1, 2], [3, 4], [5, 6]], "FP32");
  const texts = toTensor("t", ["a", "b", "c"], "BYTES");
  const parts = [rowsFrom({ x, texts }, 0, 2), rowsFrom({ x, texts }, 2, 4)];
  assert.deepEqual(parts.map((part) => part.x.shape), [[2, 2], [1, 2]]);
  assert.deepEqual(joined(parts), { x, texts });
  const other = { y: { ...x, shape: [1, 6] } };
  assert.throws(() => joined([{ y: x }, other]), { name: "TransportError" });
  for (const parts of [[{ y: x }, { y: x, z: x }], [{ y: x, z: x }, { y: x }], [{ y: x }, { z: x }]]) {
    assert.throws(() => joined(parts), { name: "TransportError", message: /parts of several requests/ });
  }
});

test("options that cannot be used", async () => {
  const bad = (change, message) =>
    assert.throws(() => new Client({ url: "https://models.example", token: "a.b.c", ...change }), (error) => {
      assert.ok(error instanceof sealgate.ConfigurationError);
      assert.match(error.message, message);
      return true;
    });
  bad({ url: "http://models.example" }, /^url: plain http/);
  bad({ url: "ftp://models.example" }, /^url: /);
  bad({ url: "https://user@models.example" }, /^url: /);
  bad({ url: "https://models.example?x" }, /^url: /);
  bad({ url: "" }, /^url: /);
  bad({ relayUrl: "http://relay.example" }, /^relayUrl: /);
  bad({ token: "a b" }, /^token: /);
  bad({ token: "" }, /^token: /);
  bad({ token: undefined }, /^token: /);
  bad({ identityKey: "x" }, /^identityKey: no such option/);
  for (const name of ["identityKeys", "trustedKeys", "keyConfigs"]) {
    bad({ [name]: undefined }, new RegExp(`^${name}: none is given`));
    bad({ [name]: [] }, new RegExp(`^${name}: none is given`));
  }
  bad({ keyConfigs: "text" }, /^keyConfigs: not a Uint8Array/);
  bad({ requirePassport: true }, /^requirePassport: needs trustedKeys/);
  const rejected = (change) => new Client({ url: "https://models.example", token: "a.b.c", fetch: never, ...change }).serverMetadata();
  const never = () => assert.fail("nothing may be sent");
  await assert.rejects(rejected({ identityKeys: "none" }), { name: "ConfigurationError", message: /^identityKeys: / });
  await assert.rejects(rejected({ identityKeys: "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----" }), {
    name: "ConfigurationError",
  });
  await assert.rejects(rejected({ token: () => "a b" }), { name: "ConfigurationError", message: /^token: / });
  assert.throws(() => new Client({ url: "https://m.example", token: "t", keyConfigs: Uint8Array.of(1) }), {
    name: "TransportError",
  });
});

test("URLs and paths", () => {
  assert.equal(checkUrl("https://Models.example/", "url"), "https://models.example");
  assert.equal(checkUrl("http://localhost:3000", "url"), "http://localhost:3000");
  assert.equal(checkUrl("http://[::1]:3000/base/", "url"), "http://[::1]:3000/base");
  assert.equal(modelPath("a/b c", "/infer"), "/v2/models/a%2Fb%20c/infer");
  assert.equal(modelPath("\ud800!"), "/v2/models/%3F%21");
});

function config(kemId, bytes, ...aeads) {
  const pairs = aeads.flatMap((aead) => [0, 1, 0, aead]);
  const item = [5, kemId >> 8, kemId & 255, ...new Uint8Array(bytes), 0, pairs.length, ...pairs];
  return [item.length >> 8, item.length & 255, ...item];
}

test("X-Wing comes first, X25519 where it is offered alone", () => {
  const [xwing, x25519] = [config(KEM_XWING, 1216, 1, 3), config(KEM_X25519, 32, 3, 1)];
  const chosen = (...items) => chooseConfig(Uint8Array.from(items.flat())).kemId;
  assert.equal(chosen(x25519, xwing), KEM_XWING);
  assert.equal(chosen(xwing), KEM_XWING);
  assert.equal(chosen(x25519), KEM_X25519);
  assert.equal(chosen(config(0x1234, 7, 1), x25519), KEM_X25519);
  for (const items of [[], [config(0x1234, 7, 1)], [config(KEM_X25519, 32, 3)], [config(KEM_X25519, 31, 1)], [xwing.slice(0, -1)],
    [xwing, [0]], [xwing, [0, 2, 1, 1]], [config(KEM_X25519, 32)]]) {
    assert.throws(() => chosen(...items), { name: "TransportError" });
  }
});

test("problems become typed errors that tell what the server said", () => {
  const problem = (status, type, fields = {}) => {
    const content = utf8(JSON.stringify({ type, title: "No", detail: "not\nthis", status, more: 1 }));
    const all = { "content-type": "application/problem+json", ...fields };
    return refusal(status, (name) => all[name], content, true);
  };
  const date = "https://iana.org/assignments/http-problem-types#date";
  const at = "Mon, 30 Nov 2026 10:00:00 GMT";
  for (const [status, type, kind] of [
    [400, "x", "InvalidInputError"], [401, "x", "AuthenticationError"], [403, "x", "PermissionDeniedError"],
    [404, "x", "NotFoundError"], [409, "x", "ServerRefusedError"], [400, date, "ClockError"], [413, "x", "InvalidInputError"],
    [409, "https://sealgate.dev/problems/receipt-pending", "OverloadedError"], [429, "x", "OverloadedError"],
    [422, "https://iana.org/assignments/http-problem-types#ohttp-key", "KeyRefusedError"], [503, "x", "OverloadedError"],
    [500, "x", "ServerFailedError"], [599, "x", "ServerFailedError"],
  ]) {
    const error = problem(status, type, { "x-request-id": "id", date: at, "retry-after": "7" });
    assert.equal(error.name, kind);
    assert.ok(error instanceof sealgate.ServerRefusedError && error instanceof sealgate.SealgateError);
    assert.equal(error.message, `${status} No: not this`);
    assert.deepEqual([error.status, error.type, error.problem.more, error.requestId, error.retryAfterS, error.sealed], [status, type, 1, "id", 7, true]);
  }
  assert.equal(problem(400, date, { date: at }).serverTimeS, Date.UTC(2026, 10, 30, 10) / 1000);
  assert.equal(problem(503, "x", { date: at, "retry-after": "Mon, 30 Nov 2026 10:00:09 GMT" }).retryAfterS, 9);
  assert.equal(problem(503, "x", { "retry-after": at }).retryAfterS, undefined);
  assert.equal(problem(503, "x", { "retry-after": "999999999" }).retryAfterS, 86400);
  assert.equal(timeOf("2026-11-30"), undefined);
  const html = refusal(502, (name) => ({ "content-type": "text/html" })[name], utf8("<h1>"));
  assert.equal(html.name, "TransportError");
});
