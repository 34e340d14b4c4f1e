// Key configurations signed by a deployment's identity keys, in their two versions
// (docs/protocol.md). A page that pins those keys seals to nothing that anyone in between,
// or the page's own network, offers in their place.

import { fromBase64, type Bytes } from "./bytes.js";
import {
  decodeBase64,
  ECDSA_P256,
  ML_DSA_65,
  preAuthenticationEncoding,
  StatementError,
  type TrustedKeys,
} from "./dsse.js";
import { isObject, parseObject, type JsonObject } from "./json.js";

export const SIGNED_KEYS_PATH = "/.well-known/sealgate-keys";
export const SIGNED_KEYS_V2_PATH = "/.well-known/sealgate-keys-v2";
export const SIGNED_KEYS_MEDIA_TYPE = "application/vnd.dsse.envelope.v1+json";

const PAYLOAD_TYPES = {
  1: "application/vnd.sealgate.ohttp-keys+json",
  2: "application/vnd.sealgate.ohttp-keys.v2+json",
} as const;
const MAX_ENVELOPE_BYTES = 256 << 10;
const MAX_SIGNATURES = 4;
const LEEWAY_S = 60;

export interface SignedKeys {
  /** The `application/ohttp-keys` document. */
  document: Bytes;
  /** Unix seconds until which it is vouched for. */
  notAfter: number;
}

/** The version to ask for: the first, unless what is trusted is in the second alone. */
export const versionFor = (keys: TrustedKeys): 1 | 2 =>
  [...keys.values()].every((key) => key.algorithm === ECDSA_P256) ? 1 : 2;

/**
 * Verifies an envelope against the identity keys that one trusts.
 *
 * 1. bounded, strict JSON; exact payload type; one signature (version 1), or 1 to 4 (2);
 * 2. signatures whose key id names a trusted key are verified, each by that key's algorithm;
 *    one that does not verify refuses all; the key id only selects;
 * 3. of each algorithm that one trusts a key of, a signature has verified. Only then is the
 *    payload read;
 * 4. exactly the members of its version; the window is open now, by this device's clock: by a
 *    server's, whoever holds a key that was replaced could put it back.
 *
 * @param nowS Unix seconds.
 * @throws StatementError any of these.
 */
export async function verifySignedKeys(
  envelope: Uint8Array,
  keys: TrustedKeys,
  nowS: number,
  version: 1 | 2,
): Promise<SignedKeys> {
  const value = objectOf(envelope, "envelope");
  const type = PAYLOAD_TYPES[version];
  if (value["payloadType"] !== type) throw new StatementError("envelope: not signed key configurations");
  const signatures = signaturesOf(value["signatures"], version === 1 ? 1 : MAX_SIGNATURES);
  const payload = decodeBase64(value["payload"]);
  const data = preAuthenticationEncoding(type, payload);
  const verified = new Set<string>();
  for (const [hint, signature] of signatures) {
    const key = keys.get(hint);
    if (key === undefined) continue;
    if (version === 1 && key.algorithm === ML_DSA_65) continue;
    if (!(await key.verifies(decodeBase64(signature), data))) throw new StatementError("signature does not verify");
    verified.add(key.algorithm);
  }
  const wanted = [...new Set([...keys.values()].map((key) => key.algorithm))];
  const missing = wanted.find((algorithm) => !verified.has(algorithm));
  if (missing || !wanted.length) throw new StatementError(`no signature by a trusted key of ${missing}`);
  return content(objectOf(payload, "payload"), nowS, version);
}

function signaturesOf(value: unknown, most: number): Map<string, unknown> {
  if (!Array.isArray(value) || value.length < 1 || value.length > most) {
    throw new StatementError(`envelope: expected 1 to ${most} signatures`);
  }
  const found = new Map<string, unknown>();
  for (const item of value as unknown[]) {
    const hint = isObject(item) ? item["keyid"] : undefined;
    if (typeof hint !== "string" || found.has(hint)) {
      throw new StatementError("envelope: a signature without a key id of its own");
    }
    found.set(hint, (item as JsonObject)["sig"]);
  }
  return found;
}

function content(value: JsonObject, nowS: number, version: 1 | 2): SignedKeys {
  const members = ["keys", "not_after", "not_before", ...(version === 2 ? ["attestation"] : [])];
  if (Object.keys(value).sort().join() !== members.sort().join()) throw new StatementError("payload: unexpected members");
  const { not_before: notBefore, not_after: notAfter } = value;
  if (!Number.isSafeInteger(notBefore) || !Number.isSafeInteger(notAfter)) {
    throw new StatementError("payload: times are not whole seconds");
  }
  const about = `valid from ${time(notBefore)} to ${time(notAfter)}; this device's clock says ${time(nowS)}`;
  if (nowS + LEEWAY_S < Number(notBefore)) throw new StatementError(`they are not valid yet: ${about}`);
  if (nowS - LEEWAY_S > Number(notAfter)) throw new StatementError(`they are not valid any more: ${about}`);
  const document = fromBase64(value["keys"]);
  if (document === undefined) throw new StatementError("payload: expected canonical base64");
  return { document, notAfter: Number(notAfter) };
}

function time(seconds: unknown): string {
  const date = new Date(Number(seconds) * 1000);
  return Number.isNaN(date.getTime()) ? `${seconds}` : date.toISOString().replace(/\.\d+/, "");
}

function objectOf(bytes: Uint8Array, where: string): JsonObject {
  try {
    return parseObject(bytes, MAX_ENVELOPE_BYTES);
  } catch (error) {
    throw new StatementError(`${where}: ${(error as Error).message}`);
  }
}
