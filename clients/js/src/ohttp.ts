// Encapsulated requests and responses: whole (RFC 9458, section 4) and in chunks
// (draft-ietf-ohai-chunked-ohttp-08). HPKE is @hpke/core's, HKDF and AES-GCM WebCrypto's.
//
// An answer opens only with the secret that was exported from its own request's context:
// the answer of another request does not.

import { concat, concatAll, readVarint, utf8, varint, type Bytes } from "./bytes.js";
import { TransportError } from "./errors.js";
import { headerOf, suiteOf, type KeyConfig } from "./keyconfig.js";

const NONCE_BYTES = 16; // of an answer: max(Nn, Nk) of AES-128-GCM
const AEAD_NONCE_BYTES = 12;
const KEY_BYTES = 16;
const TAG_BYTES = 16;
// What every receiver takes; senders stay within it (draft, section 3).
const CHUNK_BYTES = 16 << 10;
const MAX_CHUNK_BYTES = 1 << 20;
const FINAL = utf8("final");
const EMPTY = new Uint8Array(0);

/** A sealed request, and what opens its answer. */
export interface Sealed {
  content: Bytes;
  mediaType: string;
  responseMediaType: string;
  /** Opens the answer, given whole. Throws a TransportError unless it is authentic and whole. */
  open(content: Uint8Array): Promise<Uint8Array>;
}

const unusable = (what: string) => new TransportError(`the sealed answer is unusable: ${what}`);

/** Test vectors fix the ephemeral key; everybody else has a fresh one. */
type Ephemeral = CryptoKeyPair | undefined;

export async function seal(config: KeyConfig, message: Uint8Array, ephemeral?: Ephemeral): Promise<Sealed> {
  const { header, sender } = await begin(config, "message/bhttp request", ephemeral);
  const enc = new Uint8Array(sender.enc);
  const protectedMessage = new Uint8Array(await sender.seal(message));
  const secret = await exported(sender, "message/bhttp response");
  return {
    content: concat(header, enc, protectedMessage),
    mediaType: "message/ohttp-req",
    responseMediaType: "message/ohttp-res",
    async open(content) {
      if (content.length < NONCE_BYTES + TAG_BYTES) throw unusable("it is too short");
      const opener = await Opener.of(secret, enc, content.subarray(0, NONCE_BYTES));
      return opener.open(content.subarray(NONCE_BYTES), EMPTY);
    },
  };
}

/**
 * Seals in chunks, and takes the answer in chunks.
 *
 * The server opens each chunk as it arrives, and holds no sealed copy of the whole.
 *
 * @param chunks lengths of the chunks, for test vectors.
 */
export async function sealChunked(
  config: KeyConfig,
  message: Uint8Array,
  ephemeral?: Ephemeral,
  chunks = evenly(message.length),
): Promise<Sealed> {
  const { header, sender } = await begin(config, "message/bhttp chunked request", ephemeral);
  const enc = new Uint8Array(sender.enc);
  const parts: Uint8Array[] = [header, enc];
  let at = 0;
  for (const size of chunks) {
    const chunk = new Uint8Array(await sender.seal(message.subarray(at, (at += size))));
    parts.push(varint(chunk.length), chunk);
  }
  const last = new Uint8Array(await sender.seal(message.subarray(at), FINAL));
  const secret = await exported(sender, "message/bhttp chunked response");
  return {
    content: concatAll([...parts, varint(0), last]),
    mediaType: "message/ohttp-chunked-req",
    responseMediaType: "message/ohttp-chunked-res",
    open: (content) => openChunks(secret, enc, content),
  };
}

function evenly(size: number): number[] {
  return Array<number>(Math.max(0, Math.ceil(size / CHUNK_BYTES) - 1)).fill(CHUNK_BYTES);
}

async function openChunks(secret: Uint8Array, enc: Uint8Array, content: Uint8Array): Promise<Uint8Array> {
  const opener = await Opener.of(secret, enc, content.subarray(0, NONCE_BYTES));
  const parts: Uint8Array[] = [];
  let at = NONCE_BYTES;
  for (;;) {
    const [size, width] = readVarint(content, at) ?? [0, 0];
    at += width;
    if (width === 0 || size > content.length - at) throw unusable("the stream ends before its final chunk");
    if (size === 0) break;
    if (size <= TAG_BYTES) throw unusable("an empty chunk that is not final");
    if (size > MAX_CHUNK_BYTES + TAG_BYTES) throw unusable("a chunk is too long");
    parts.push(await opener.open(content.subarray(at, (at += size)), EMPTY));
  }
  // What is cut off shows here: only the last chunk is sealed as the final one.
  parts.push(await opener.open(content.subarray(at), FINAL));
  return concatAll(parts);
}

async function begin(config: KeyConfig, label: string, ephemeral: Ephemeral) {
  const header = headerOf(config);
  const info = concat(utf8(`${label}\0`), header);
  const suite = suiteOf(config);
  try {
    const recipientPublicKey = await suite.kem.deserializePublicKey(config.publicKey);
    const ekm = ephemeral && { ekm: ephemeral };
    return { header, sender: await suite.createSenderContext({ recipientPublicKey, info, ...ekm }) };
  } catch (cause) {
    throw new TransportError("the server's key configuration: its public key cannot be used", { cause });
  }
}

interface Exporter {
  export(context: Uint8Array, size: number): Promise<ArrayBuffer>;
}

async function exported(sender: Exporter, label: string): Promise<Bytes> {
  return new Uint8Array(await sender.export(utf8(label), NONCE_BYTES));
}

/** Opens what one answer is made of, each part with the next nonce (draft, section 4.2). */
class Opener {
  #counter = 0;
  private constructor(
    readonly key: CryptoKey,
    readonly nonce: Bytes,
  ) {}

  static async of(secret: Uint8Array, enc: Uint8Array, responseNonce: Uint8Array): Promise<Opener> {
    // WebCrypto's HKDF, since @hpke/core's extract refuses a salt of this length.
    const ikm = await crypto.subtle.importKey("raw", secret as Bytes, "HKDF", false, ["deriveBits"]);
    const derive = async (label: string, size: number) => {
      const parameters = { name: "HKDF", hash: "SHA-256", salt: concat(enc, responseNonce), info: utf8(label) };
      return new Uint8Array(await crypto.subtle.deriveBits(parameters, ikm, 8 * size));
    };
    const raw = await derive("key", KEY_BYTES);
    const key = await crypto.subtle.importKey("raw", raw, "AES-GCM", false, ["decrypt"]);
    return new Opener(key, await derive("nonce", AEAD_NONCE_BYTES));
  }

  async open(part: Uint8Array, additionalData: Uint8Array): Promise<Bytes> {
    const iv = this.nonce.slice();
    const tail = new DataView(iv.buffer, AEAD_NONCE_BYTES - 4);
    tail.setUint32(0, tail.getUint32(0) ^ this.#counter++);
    try {
      const parameters = { name: "AES-GCM", iv, additionalData: additionalData as Bytes };
      return new Uint8Array(await crypto.subtle.decrypt(parameters, this.key, part as Bytes));
    } catch {
      throw unusable("response does not authenticate");
    }
  }
}
