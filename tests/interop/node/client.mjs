// An Oblivious HTTP client made of npm packages only. It asks a server one question and
// prints what it was answered:
//   node client.mjs KEYS_URL GATEWAY_URL TOKEN KEM AEAD < inner request body
import { hkdfSync } from "node:crypto";
import { Aes128Gcm, CipherSuite, HkdfSha256 } from "@hpke/core";
import { Chacha20Poly1305 } from "@hpke/chacha20poly1305";
import { DhkemX25519HkdfSha256 } from "@hpke/dhkem-x25519";
import { XWing } from "@hpke/hybridkem-x-wing";
import { BHttpDecoder, BHttpEncoder } from "bhttp-js";

const [keysUrl, gatewayUrl, token, kemName, aeadName, path] = process.argv.slice(2);
const KEMS = { x25519: [0x0020, 32], xwing: [0x647a, 1216] };
const AEADS = { aes128gcm: [0x0001, 16], chacha20poly1305: [0x0003, 32] };
const NN = 12;

const concat = (...parts) => new Uint8Array(Buffer.concat(parts));
const u16 = (value) => Uint8Array.of(value >> 8, value & 0xff);

// RFC 9458, section 3: the configuration of the wanted KEM.
async function findConfig(kemId, keyBytes) {
  const response = await fetch(keysUrl);
  if (response.headers.get("content-type") !== "application/ohttp-keys") {
    throw new Error("no keys");
  }
  const list = Buffer.from(await response.arrayBuffer());
  for (let at = 0; at < list.length; ) {
    const size = list.readUInt16BE(at);
    const item = list.subarray(at + 2, at + 2 + size);
    at += 2 + size;
    if (item.readUInt16BE(1) !== kemId) continue;
    const algorithms = item.subarray(3 + keyBytes + 2);
    const offered = [];
    for (let i = 0; i < algorithms.length; i += 4) {
      offered.push(algorithms.readUInt16BE(i + 2));
    }
    return { id: item[0], key: new Uint8Array(item.subarray(3, 3 + keyBytes)), offered };
  }
  throw new Error(`the server offers no KEM ${kemId}`);
}

async function body() {
  const parts = [];
  for await (const part of process.stdin) parts.push(part);
  return Buffer.concat(parts);
}

const [kemId, keyBytes] = KEMS[kemName];
const [aeadId, nk] = AEADS[aeadName];
const config = await findConfig(kemId, keyBytes);
if (!config.offered.includes(aeadId)) throw new Error(`no AEAD ${aeadId}`);
const suite = new CipherSuite({
  kem: kemName === "xwing" ? new XWing() : new DhkemX25519HkdfSha256(),
  kdf: new HkdfSha256(),
  aead: aeadName === "aes128gcm" ? new Aes128Gcm() : new Chacha20Poly1305(),
});

const content = await body();
const inner = await new BHttpEncoder().encodeRequest(
  new Request(new URL(path, "https://models.example"), {
    method: content.length ? "POST" : "GET",
    headers: {
      authorization: `Bearer ${token}`,
      date: new Date().toUTCString(),
      "content-type": "application/json",
    },
    body: content.length ? content : undefined,
  }),
);

// Section 4.3.
const header = concat(Uint8Array.of(config.id), u16(kemId), u16(1), u16(aeadId));
const info = concat(Buffer.from("message/bhttp request\0"), header);
const recipientPublicKey = await suite.kem.deserializePublicKey(config.key);
const sender = await suite.createSenderContext({ recipientPublicKey, info });
const sealed = new Uint8Array(await sender.seal(inner));
const enc = new Uint8Array(sender.enc);
const outer = await fetch(gatewayUrl, {
  method: "POST",
  headers: { "content-type": "message/ohttp-req" },
  body: concat(header, enc, sealed),
});
const answer = Buffer.from(await outer.arrayBuffer());
if (outer.headers.get("content-type") !== "message/ohttp-res") {
  throw new Error(`${outer.status} ${answer}`);
}

// Section 4.4. @hpke/core's own HKDF refuses salts that are not 32 bytes.
const size = Math.max(nk, NN);
const secret = new Uint8Array(await sender.export(Buffer.from("message/bhttp response"), size));
const nonce = answer.subarray(0, size);
const derive = (label, length) =>
  hkdfSync("sha256", secret, concat(enc, nonce), Buffer.from(label), length);
const context = suite.aead.createEncryptionContext(derive("key", nk));
const opened = await context.open(
  derive("nonce", NN),
  new Uint8Array(answer.subarray(size)),
  new Uint8Array(),
);
const response = new BHttpDecoder().decodeResponse(opened);
console.log(JSON.stringify({ status: response.status, text: await response.text() }));
