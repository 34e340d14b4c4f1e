// DSSE signatures (secure-systems-lab/dsse), ECDSA P-256 and ML-DSA-65, and the keys that
// they verify under. A key's hint is the hex SHA-256 of its SubjectPublicKeyInfo in PEM.
//
// ECDSA is with SHA-256 over the pre-authentication encoding, in DER. ML-DSA-65 (FIPS 204,
// pure, the context empty) is over the encoding itself: WebCrypto verifies it where it can,
// and otherwise a verifier that the page brings.

import { concat, equal, fromBase64, hex, fromHex, sha256Hex, toBase64, utf8, type Bytes } from "./bytes.js";
import { ConfigurationError } from "./errors.js";

export const ECDSA_P256 = "ecdsa-p256-sha256";
export const ML_DSA_65 = "ml-dsa-65";

/** Verifies ML-DSA-65 (FIPS 204, pure, empty context), for browsers whose WebCrypto does not. */
export type MlDsa65Verifier = (
  signature: Uint8Array,
  message: Uint8Array,
  publicKey: Uint8Array,
) => boolean | Promise<boolean>;

export interface TrustedKey {
  algorithm: typeof ECDSA_P256 | typeof ML_DSA_65;
  /** Whether a signature, possibly hostile, is this key's over the data. */
  verifies(signature: Uint8Array, data: Uint8Array): Promise<boolean>;
}

/** Trusted keys by hint. */
export type TrustedKeys = Map<string, TrustedKey>;

/** What is wrong with a signature, envelope or statement; callers say which document it was. */
export class StatementError extends Error {}

// What stands before the key in a SubjectPublicKeyInfo of the two algorithms: RFC 5480 with
// an uncompressed point, RFC 9881. The only forms in use, so nothing else is parsed.
const P256_PREFIX = fromHex("3059301306072a8648ce3d020106082a8648ce3d030107034200")!;
const ML_DSA_65_PREFIX = fromHex("308207b2300b0609608648016503040312038207a100")!;
const P256_BYTES = 65;
const ML_DSA_65_BYTES = 1952;
const PEM = /-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+?)-----END PUBLIC KEY-----/g;
const HALF = 32;

/**
 * Keys of PEM texts, each with one or several.
 *
 * @throws ConfigurationError one is no such key, or nothing here verifies ML-DSA-65.
 */
export async function loadKeys(
  option: string,
  pems: string | readonly string[],
  mlDsa65: MlDsa65Verifier | undefined,
): Promise<TrustedKeys> {
  const keys: TrustedKeys = new Map();
  for (const text of typeof pems === "string" ? [pems] : pems) {
    const found = [...String(text).matchAll(PEM)];
    if (!found.length) throw new ConfigurationError(`${option}: not a PEM public key`);
    for (const [, body] of found) {
      const der = fromBase64(body!.replace(/\s/g, ""));
      if (der === undefined) throw new ConfigurationError(`${option}: not a PEM public key`);
      keys.set(await hintOf(der), await keyOf(option, der, mlDsa65));
    }
  }
  return keys;
}

function hintOf(der: Bytes): Promise<string> {
  const lines = toBase64(der).replace(/.{64}(?=.)/g, "$&\n");
  return sha256Hex(utf8(`-----BEGIN PUBLIC KEY-----\n${lines}\n-----END PUBLIC KEY-----\n`));
}

async function keyOf(option: string, der: Bytes, mlDsa65: MlDsa65Verifier | undefined): Promise<TrustedKey> {
  const behind = (prefix: Bytes, size: number) =>
    der.length === prefix.length + size && equal(der.subarray(0, prefix.length), prefix) ? der.slice(prefix.length) : undefined;
  const point = behind(P256_PREFIX, P256_BYTES);
  if (point) return ecdsaKey(option, point);
  const raw = behind(ML_DSA_65_PREFIX, ML_DSA_65_BYTES);
  if (raw) return mlDsaKey(option, der, raw, mlDsa65);
  throw new ConfigurationError(`${option}: neither ECDSA P-256 nor ML-DSA-65`);
}

async function ecdsaKey(option: string, point: Bytes): Promise<TrustedKey> {
  const curve = { name: "ECDSA", namedCurve: "P-256" };
  const key = await crypto.subtle.importKey("raw", point, curve, false, ["verify"]).catch(() => {
    throw new ConfigurationError(`${option}: not a point of P-256`);
  });
  return {
    algorithm: ECDSA_P256,
    async verifies(signature, data) {
      const raw = fromDer(signature);
      const how = { name: "ECDSA", hash: "SHA-256" };
      return raw !== undefined && crypto.subtle.verify(how, key, raw, data as Bytes);
    },
  };
}

async function mlDsaKey(
  option: string,
  der: Bytes,
  raw: Bytes,
  brought: MlDsa65Verifier | undefined,
): Promise<TrustedKey> {
  const name = "ML-DSA-65";
  if (brought) {
    return { algorithm: ML_DSA_65, verifies: async (signature, data) => (await brought(signature, data, raw)) === true };
  }
  const key = await crypto.subtle.importKey("spki", der, { name }, false, ["verify"]).catch(() => {
    throw new ConfigurationError(`${option}: nothing here verifies ${name}; give mlDsa65`);
  });
  return {
    algorithm: ML_DSA_65,
    verifies: (signature, data) => crypto.subtle.verify({ name }, key, signature as Bytes, data as Bytes),
  };
}

/** WebCrypto's form of an ECDSA signature, r and s, from DER (RFC 3279, section 2.2.3). */
function fromDer(signature: Uint8Array): Bytes | undefined {
  const found = /^30(..)02(..)((?:..)+)$/.exec(hex(signature));
  if (!found || parseInt(found[1]!, 16) !== signature.length - 2) return undefined;
  const size = 2 * parseInt(found[2]!, 16);
  const [r, rest] = [found[3]!.slice(0, size), found[3]!.slice(size)];
  const second = /^02(..)((?:..)+)$/.exec(rest);
  if (!second || 2 * parseInt(second[1]!, 16) !== second[2]!.length) return undefined;
  // Positive, in the shortest form, and not longer than the curve's order.
  const halves = [r, second[2]!].map((digits) => {
    const short = /^(?:00(?=[89a-f])|(?=[0-7]))(?!00(?!$))((?:..)+)$/.exec(digits)?.[1];
    return short !== undefined && short.length <= 2 * HALF ? fromHex(short.padStart(2 * HALF, "0")) : undefined;
  });
  return halves[0] && halves[1] && concat(halves[0], halves[1]);
}

/** What is signed (DSSE protocol.md): the payload with its type. */
export function preAuthenticationEncoding(payloadType: string, payload: Uint8Array): Bytes {
  const type = utf8(payloadType);
  return concat(utf8(`DSSEv1 ${type.length} `), type, utf8(` ${payload.length} `), payload);
}

/** Bytes of canonical base64: one encoding for one value, so that digests are stable. */
export function decodeBase64(text: unknown): Bytes {
  const bytes = fromBase64(text);
  if (bytes === undefined) throw new StatementError("envelope: expected canonical base64");
  return bytes;
}
