// Bytes and texts: what several formats here are made of.

export type Bytes = Uint8Array<ArrayBuffer>;

const encoder = new TextEncoder();
const strict = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

export const utf8 = (text: string): Bytes => encoder.encode(text);

/** The text whose UTF-8 this is. Throws a TypeError if it is none. */
export const textOf = (bytes: Uint8Array): string => strict.decode(bytes);

/** Bytes of which each is a character: header fields, as HTTP has them. */
export function latin1(bytes: Uint8Array): string {
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return text;
}

export const concat = (...parts: readonly Uint8Array[]): Bytes => concatAll(parts);

/** Of any number of parts: as arguments, some ten thousands run out of stack. */
export function concatAll(parts: readonly Uint8Array[]): Bytes {
  const whole = new Uint8Array(parts.reduce((size, part) => size + part.length, 0));
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}

export const uint16 = (value: number): Bytes => Uint8Array.of(value >> 8, value & 0xff);

export const equal = (a: Uint8Array, b: Uint8Array): boolean =>
  a.length === b.length && a.every((byte, index) => byte === b[index]);

/** Canonical base64: one text for one value. Returns undefined for anything else. */
export function fromBase64(text: unknown): Bytes | undefined {
  if (typeof text !== "string" || !/^[A-Za-z0-9+/]*={0,2}$/.test(text)) return undefined;
  try {
    const bytes = Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
    return toBase64(bytes) === text ? bytes : undefined;
  } catch {
    return undefined;
  }
}

export const toBase64 = (bytes: Uint8Array): string => btoa(latin1(bytes));

export const hex = (bytes: Uint8Array): string =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

/** Bytes of lower-case hexadecimal digits; undefined for any other text. */
export const fromHex = (text: string): Bytes | undefined =>
  /^([0-9a-f]{2})*$/.test(text)
    ? Uint8Array.from(text.match(/../g) ?? [], (pair) => parseInt(pair, 16))
    : undefined;

export async function sha256(bytes: Uint8Array): Promise<Bytes> {
  return new Uint8Array(await crypto.subtle.digest("SHA-256", bytes as Bytes));
}

export const sha256Hex = async (bytes: Uint8Array): Promise<string> => hex(await sha256(bytes));

/** A variable-length integer (RFC 9000, section 16), in its shortest form. */
export function varint(value: number): Bytes {
  if (value < 0x40) return Uint8Array.of(value);
  if (value < 0x4000) return uint16(value | 0x4000);
  const wide = new DataView(new ArrayBuffer(value < 0x4000_0000 ? 4 : 8));
  if (wide.byteLength === 4) wide.setUint32(0, value + 0x8000_0000);
  else wide.setBigUint64(0, BigInt(value) | (3n << 62n));
  return new Uint8Array(wide.buffer);
}

/** A variable-length integer and how many bytes it takes; undefined while it is incomplete. */
export function readVarint(bytes: Uint8Array, at: number): [value: number, size: number] | undefined {
  const first = bytes[at];
  if (first === undefined) return undefined;
  const size = 1 << (first >> 6);
  if (at + size > bytes.length) return undefined;
  let value = first & 0x3f;
  // Beyond 2^53 a number is inexact, but stays far larger than any bound.
  for (let next = 1; next < size; next++) value = value * 256 + bytes[at + next]!;
  return [value, size];
}
