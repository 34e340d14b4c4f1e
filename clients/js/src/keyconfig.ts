// Key configurations: what a gateway can open (RFC 9458, section 3).

import { Aes128Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } from "@hpke/core";
import { XWing } from "@hpke/hybridkem-x-wing";

import { TransportError } from "./errors.js";

export const KEYS_MEDIA_TYPE = "application/ohttp-keys";

/** X-Wing first: key encapsulation that also resists a quantum computer, where offered. */
export const KEM_XWING = 0x647a;
export const KEM_X25519 = 0x0020;
const HKDF_SHA256 = 1;
const AES_128_GCM = 1;
const PUBLIC_KEY_BYTES = new Map([
  [KEM_XWING, 1216],
  [KEM_X25519, 32],
]);
const MAX_LIST_BYTES = 64 << 10;

/** One public key to which requests can be sealed, by HKDF-SHA256 and AES-128-GCM. */
export interface KeyConfig {
  keyId: number;
  kemId: number;
  publicKey: Uint8Array;
}

const refuse = (what: string) => new TransportError(`the server's key configuration: ${what}`);

/**
 * The configuration of a document to seal to: X-Wing's if there is one, else as the server prefers.
 *
 * A KEM that is not known is passed over, as section 3 lets a client do; anything
 * malformed refuses the whole list.
 */
export function chooseConfig(document: Uint8Array): KeyConfig {
  const configs = decodeList(document);
  const chosen = configs.find((config) => config.kemId === KEM_XWING) ?? configs[0];
  if (chosen === undefined) throw refuse("no supported algorithm");
  return chosen;
}

function decodeList(document: Uint8Array): KeyConfig[] {
  if (document.length > MAX_LIST_BYTES) throw refuse(`more than ${MAX_LIST_BYTES} bytes`);
  const view = new DataView(document.buffer, document.byteOffset, document.length);
  const configs: KeyConfig[] = [];
  for (let at = 0; at < document.length; ) {
    const size = at + 2 <= document.length ? view.getUint16(at) : 0;
    const item = document.subarray(at + 2, at + 2 + size);
    if (size < 3 || item.length !== size) throw refuse("the list is truncated");
    const config = decode(item);
    if (config !== undefined) configs.push(config);
    at += 2 + size;
  }
  return configs;
}

function decode(item: Uint8Array): KeyConfig | undefined {
  const view = new DataView(item.buffer, item.byteOffset, item.length);
  const kemId = view.getUint16(1);
  const size = PUBLIC_KEY_BYTES.get(kemId);
  if (size === undefined) return undefined;
  if (item.length < 5 + size) throw refuse("it is truncated");
  const length = view.getUint16(3 + size);
  if (length !== item.length - 5 - size || length % 4 || !length) {
    throw refuse("symmetric algorithms do not match their length");
  }
  for (let at = 5 + size; at < item.length; at += 4) {
    if (view.getUint16(at) === HKDF_SHA256 && view.getUint16(at + 2) === AES_128_GCM) {
      return { keyId: item[0]!, kemId, publicKey: item.slice(3, 3 + size) };
    }
  }
  return undefined;
}

/** What seals to a configuration; a new one each time, since it has state of its own. */
export function suiteOf(config: KeyConfig): CipherSuite {
  return new CipherSuite({
    kem: config.kemId === KEM_XWING ? new XWing() : new DhkemX25519HkdfSha256(),
    kdf: new HkdfSha256(),
    aead: new Aes128Gcm(),
  });
}

/** The header of an encapsulated request (section 4.3). */
export function headerOf(config: KeyConfig): Uint8Array {
  const header = new DataView(new ArrayBuffer(7));
  header.setUint8(0, config.keyId);
  header.setUint16(1, config.kemId);
  header.setUint16(3, HKDF_SHA256);
  header.setUint16(5, AES_128_GCM);
  return new Uint8Array(header.buffer);
}
