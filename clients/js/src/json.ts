// JSON as RFC 8259 means it, within bounds: for documents that are signed or trusted.
//
// JSON.parse takes a member twice and keeps the last one: two readers then see two
// documents. It also reads 1e999 as Infinity. Here each of these is an error, as are
// half surrogate pairs, which cannot be written as UTF-8.

import { textOf } from "./bytes.js";

export type Json = null | boolean | number | string | Json[] | { [name: string]: Json };
export type JsonObject = { [name: string]: Json };

const MAX_DEPTH = 32;
const SPACE = /[ \t\n\r]*/y;
const WORD = /-?[0-9][0-9.eE+-]*|true|false|null/y;

/** Parses one document. Throws a SyntaxError, which says what is wrong. */
export function parseJson(bytes: Uint8Array, maxBytes: number): Json {
  if (bytes.length > maxBytes) {
    throw new SyntaxError(`document has ${bytes.length} bytes, at most ${maxBytes} allowed`);
  }
  let text: string;
  try {
    text = textOf(bytes);
  } catch {
    throw new SyntaxError("not JSON: invalid UTF-8");
  }
  const reader = new Reader(text);
  const value = reader.value(0);
  reader.end();
  return value;
}

/** Parses a document whose top level must be an object. */
export function parseObject(bytes: Uint8Array, maxBytes: number): JsonObject {
  const value = parseJson(bytes, maxBytes);
  if (!isObject(value)) throw new SyntaxError("top level is not an object");
  return value;
}

export const isObject = (value: unknown): value is JsonObject =>
  typeof value === "object" && value !== null && !Array.isArray(value);

/** A member of what may be an object; never one that all objects inherit. */
export const member = (value: unknown, name: string): unknown =>
  isObject(value) && Object.hasOwn(value, name) ? value[name] : undefined;

class Reader {
  #at = 0;
  constructor(readonly text: string) {}

  value(depth: number): Json {
    const next = this.#peek();
    if (next === "{" || next === "[") {
      if (depth === MAX_DEPTH) throw new SyntaxError(`nested more than ${MAX_DEPTH} levels deep`);
      this.#at++;
      return next === "{" ? this.#object(depth + 1) : this.#array(depth + 1);
    }
    return this.#scalar();
  }

  end(): void {
    if (this.#peek() !== "") throw new SyntaxError("not JSON: text behind the document");
  }

  #object(depth: number): JsonObject {
    const members: JsonObject = Object.create(null) as JsonObject;
    if (this.#took("}")) return members;
    do {
      const name = this.#peek() === '"' ? this.#scalar() : undefined;
      if (typeof name !== "string" || !this.#took(":")) throw new SyntaxError("not JSON: a member without name");
      if (name in members) throw new SyntaxError("an object repeats a key");
      members[name] = this.value(depth);
    } while (this.#took(","));
    if (!this.#took("}")) throw new SyntaxError("not JSON: an object does not end");
    return members;
  }

  #array(depth: number): Json[] {
    const items: Json[] = [];
    if (this.#took("]")) return items;
    do items.push(this.value(depth));
    while (this.#took(","));
    if (!this.#took("]")) throw new SyntaxError("not JSON: an array does not end");
    return items;
  }

  #scalar(): Json {
    const found = this.#peek() === '"' ? this.#quoted() : this.#word();
    if (!found) throw new SyntaxError(`not JSON: at character ${this.#at}`);
    this.#at += found.length;
    // Of a scalar JSON.parse knows all that is to be known, escapes and forms of numbers.
    const value = JSON.parse(found) as Json;
    if (typeof value === "number" && !Number.isFinite(value)) {
      throw new SyntaxError("a number is too large for a double");
    }
    if (typeof value === "string" && /\p{Surrogate}/u.test(value)) {
      throw new SyntaxError("half a surrogate pair is not a character");
    }
    return value;
  }

  #word(): string | undefined {
    WORD.lastIndex = this.#at;
    return WORD.exec(this.text)?.[0];
  }

  /** Not by an expression: those run out of stack on texts of some megabytes. */
  #quoted(): string | undefined {
    for (let end = this.#at + 1; (end = this.text.indexOf('"', end)) !== -1; end++) {
      let escapes = 0;
      while (this.text[end - 1 - escapes] === "\\") escapes++;
      if (escapes % 2 === 0) return this.text.slice(this.#at, end + 1);
    }
    return undefined;
  }

  #peek(): string {
    SPACE.lastIndex = this.#at;
    this.#at += SPACE.exec(this.text)![0].length;
    return this.text.charAt(this.#at);
  }

  #took(mark: string): boolean {
    const is = this.#peek() === mark;
    if (is) this.#at++;
    return is;
  }
}
