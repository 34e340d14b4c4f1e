// Binary HTTP messages (RFC 9292): requests of known length, responses in both framings.
//
// Not on `Request` and `Headers`: those forbid a page to set Date, which a sealed request
// must have. A message that breaks the format is refused whole; nothing is guessed.

import { concat, concatAll, latin1, readVarint, utf8, varint, type Bytes } from "./bytes.js";
import { TransportError } from "./errors.js";

export type Fields = readonly (readonly [name: string, value: string])[];

export interface Request {
  method: string;
  scheme: string;
  authority: string;
  path: string;
  fields: Fields;
  content: Uint8Array;
}

export interface Response {
  status: number;
  fields: Fields;
  content: Uint8Array;
}

const MAX_FIELDS = 64;
const MAX_FIELD_BYTES = 16 << 10;
const MAX_CHUNKS = 16 << 10;
const NAME = /^[a-z0-9!#$%&'*+\-.^_`|~]+$/;
const VALUE = /^(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?)?$/;

const malformed = (what: string) => new TransportError(`the sealed answer is unusable: ${what}`);
const prefixed = (bytes: Uint8Array): Bytes => concat(varint(bytes.length), bytes);
const fieldLines = (fields: Fields): Bytes =>
  concat(...fields.flatMap(([name, value]) => [prefixed(utf8(name)), prefixed(utf8(value))]));

/**
 * A request (section 3.1).
 *
 * @param align an offset in the content. It comes to lie on a multiple of eight bytes of
 *   the message, so that the server can use tensors that begin there as they are. Lengths
 *   in front are written in longer forms for that, as RFC 9000, section 16, allows.
 */
export function encodeRequest(request: Request, align?: number): Bytes {
  const control = [request.method, request.scheme, request.authority, request.path].map(utf8);
  const head = [prefixed(fieldLines(request.fields)), varint(request.content.length)];
  const lengths = [0, ...control.map((part) => part.length)];
  const texts = [new Uint8Array(), ...control];
  const front = (encoded: Bytes[]) => concat(...encoded.flatMap((length, i) => [length, texts[i]!]), ...head);
  const short = lengths.map(varint);
  const missing = align === undefined ? 0 : -(front(short).length + align) & 7;
  return concat(front(missing ? lengthened(lengths, missing) : short), request.content, Uint8Array.of(0));
}

/** Integers that take `extra` bytes more than at their shortest, where some choice does. */
function lengthened(lengths: number[], extra: number): Bytes[] {
  let left = extra;
  const encoded = lengths.map((length) => {
    const short = varint(length);
    const size = [8, 4, 2].find((wide) => wide > short.length && wide - short.length <= left);
    if (size === undefined) return short;
    left -= size - short.length;
    const wide = new Uint8Array(size);
    wide.set(short, size - short.length);
    wide[size - short.length]! &= 0x3f;
    wide[0]! |= Math.log2(size) << 6;
    return wide;
  });
  return left ? lengths.map(varint) : encoded;
}

/** A response, in either framing, with padding behind it (section 3.8). */
export function decodeResponse(message: Uint8Array, maxContentBytes: number): Response {
  const reader = new Reader(message);
  const framing = reader.varint();
  if (framing !== 1 && framing !== 3) throw malformed("not a response");
  const known = framing === 1;
  let status = reader.varint();
  for (let passed = 0; status >= 100 && status < 200 && passed < MAX_FIELDS; passed++) {
    reader.fields(known);
    status = reader.varint();
  }
  if (status < 200 || status > 599) throw malformed("status is out of range");
  const fields = reader.left ? reader.fields(known) : [];
  const content = reader.left ? reader.content(known, maxContentBytes) : new Uint8Array();
  if (reader.left) reader.fields(known); // trailers: none of ours mean anything
  if (reader.rest().some((byte) => byte !== 0)) throw malformed("padding is not zero");
  return { status, fields, content };
}

class Reader {
  #at = 0;
  #fields = MAX_FIELDS;
  #bytes = MAX_FIELD_BYTES;
  constructor(readonly message: Uint8Array) {}

  get left(): boolean {
    return this.#at < this.message.length;
  }

  rest(): Uint8Array {
    return this.message.subarray(this.#at);
  }

  varint(): number {
    const found = readVarint(this.message, this.#at);
    if (found === undefined) throw malformed("message is truncated");
    this.#at += found[1];
    return found[0];
  }

  take(size: number): Uint8Array {
    if (size > this.message.length - this.#at) throw malformed("message is truncated");
    return this.message.subarray(this.#at, (this.#at += size));
  }

  fields(known: boolean): Fields {
    const fields: [string, string][] = [];
    const size = known ? this.varint() : 0;
    const end = this.#at + size;
    if (end > this.message.length) throw malformed("message is truncated");
    while (!known || this.#at < end) {
      const nameSize = this.varint();
      if (!known && nameSize === 0) break;
      fields.push(this.#field(nameSize));
    }
    if (known && this.#at !== end) throw malformed("field section overruns its length");
    return fields;
  }

  #field(nameSize: number): [string, string] {
    const text = (size: number) => {
      this.#bytes -= size;
      if (this.#fields < 0 || this.#bytes < 0) throw malformed("too many or too long header fields");
      return latin1(this.take(size));
    };
    this.#fields--;
    const name = text(nameSize);
    const value = text(this.varint());
    if (!NAME.test(name) || !VALUE.test(value)) throw malformed("malformed header field");
    return [name, value];
  }

  content(known: boolean, maxBytes: number): Uint8Array {
    const sized = (before: number) => {
      const size = this.varint();
      if (before + size > maxBytes) throw malformed("content is too long");
      return size;
    };
    if (known) return this.take(sized(0));
    const chunks: Uint8Array[] = [];
    let total = 0;
    for (let size; (size = sized(total)); total += size) {
      if (chunks.length === MAX_CHUNKS) throw malformed("content has too many chunks");
      chunks.push(this.take(size));
    }
    return concatAll(chunks);
  }
}
