// What a sealed request says, and what an answer means: no input or output here.

import { textOf, type Bytes } from "./bytes.js";
import { encodeRequest, type Fields, type Response } from "./bhttp.js";
import {
  AuthenticationError,
  ClockError,
  ConfigurationError,
  InvalidInputError,
  KeyRefusedError,
  NotFoundError,
  OverloadedError,
  PermissionDeniedError,
  ServerFailedError,
  ServerRefusedError,
  TransportError,
} from "./errors.js";
import { parseObject, type JsonObject } from "./json.js";
import { pad } from "./padding.js";

export const GATEWAY_PATH = "/.well-known/ohttp-gateway";
const MAX_PROBLEM_BYTES = 64 << 10;
const MAX_RETRY_AFTER_S = 86_400;
const MAX_AGE_S = 86_400;
// RFC 6750, section 2.1.
const TOKEN = /^[A-Za-z0-9\-._~+/]+=*$/;
const LOOPBACK = new Set(["127.0.0.1", "[::1]", "localhost"]);

type Kind = typeof ServerRefusedError;
const BY_STATUS = new Map<number, Kind>([
  [400, InvalidInputError],
  [401, AuthenticationError],
  [403, PermissionDeniedError],
  [404, NotFoundError],
  [413, InvalidInputError],
  [415, InvalidInputError],
  [429, OverloadedError],
  [503, OverloadedError],
]);
const BY_TYPE = new Map<unknown, Kind>([
  ["https://iana.org/assignments/http-problem-types#ohttp-key", KeyRefusedError],
  ["https://iana.org/assignments/http-problem-types#date", ClockError],
  ["https://sealgate.dev/problems/receipt-pending", OverloadedError],
]);

/** A server's base URL without trailing slash, if keys may be fetched from it. */
export function checkUrl(text: string, option: string): string {
  let url: URL;
  try {
    url = new URL(text);
  } catch {
    throw new ConfigurationError(`${option}: not an http or https URL without user and query`);
  }
  if (!/^https?:$/.test(url.protocol) || url.search || url.hash || url.username || url.password) {
    throw new ConfigurationError(`${option}: not an http or https URL without user and query`);
  }
  if (url.protocol === "http:" && !LOOPBACK.has(url.hostname)) {
    throw new ConfigurationError(`${option}: plain http is for this machine only; use https`);
  }
  // Not of `href`, which keeps the mark of an empty query or fragment.
  return (url.origin + url.pathname).replace(/\/+$/, "");
}

export function checkToken(token: unknown): string {
  if (typeof token !== "string" || !TOKEN.test(token)) {
    throw new ConfigurationError("token: not an access token: text of A-Z a-z 0-9 - . _ ~ + /");
  }
  return token;
}

/** What to tell of a token that is over; nothing is verified, it is the caller's own. */
export function expiredSince(token: string, nowS: number): string {
  try {
    const part = token.split(".")[1]!.replace(/-/g, "+").replace(/_/g, "/");
    const { exp } = JSON.parse(atob(part)) as { exp?: unknown };
    if (typeof exp !== "number" || nowS < exp) return "";
    return `; the token expired ${Math.round(nowS - exp)} seconds ago, at ${new Date(exp * 1000).toISOString()}`;
  } catch {
    return "";
  }
}

/** A request as callers of `sealedMessage` have it. */
export interface Message {
  method: string;
  /** With query. */
  path: string;
  token?: string | undefined;
  fields?: Fields;
  content?: Uint8Array;
  /** Where in the content binary tensors begin, if they do. */
  tensorsAt?: number;
}

/** The padded Binary HTTP message: Date and Authorization, and what else it has. */
export function sealedMessage(message: Message, url: string, nowS: number): Bytes {
  const { protocol, host } = new URL(url);
  const fields: Fields = [
    ["date", new Date(nowS * 1000).toUTCString()],
    ...(message.token === undefined ? [] : [["authorization", `Bearer ${message.token}`] as const]),
    ...(message.fields ?? []),
  ];
  const { method, path, content = new Uint8Array(), tensorsAt } = message;
  const request = { method, scheme: protocol.slice(0, -1), authority: host, path, fields, content };
  return pad(encodeRequest(request, tensorsAt));
}

/** The path of a model's resource; no name can spell another one's. */
export function modelPath(model: string, action = ""): string {
  const quoted = encodeURIComponent(model.replace(/\p{Surrogate}/gu, "?")).replace(
    /[!'()*]/g,
    (mark) => `%${mark.charCodeAt(0).toString(16).toUpperCase()}`,
  );
  return `/v2/models/${quoted}${action}`;
}

export function fieldOf(fields: Fields, name: string): string | undefined {
  return fields.find(([found]) => found === name)?.[1];
}

/** The error that a sealed answer stands for; undefined for a success. */
export function refusalOf(response: Response): Error | undefined {
  if (response.status === 200) return undefined;
  return refusal(response.status, (name) => fieldOf(response.fields, name), response.content, true);
}

/** The error that an unsuccessful answer stands for. */
export function refusal(
  status: number,
  field: (name: string) => string | undefined,
  content: Uint8Array,
  sealed = false,
): Error {
  const problem = problemOf(field("content-type") ?? "", content);
  if (problem === undefined) return new TransportError(`the server answered ${status} without problem details`);
  const other = status >= 500 ? ServerFailedError : ServerRefusedError;
  const kind = BY_TYPE.get(problem["type"]) ?? BY_STATUS.get(status) ?? other;
  return new kind(
    status,
    problem,
    {
      retryAfterS: retryAfter(field("retry-after"), field("date")),
      sealed,
      requestId: field("x-request-id"),
      serverTimeS: kind === ClockError ? timeOf(field("date")) : undefined,
    },
  );
}

function problemOf(mediaType: string, content: Uint8Array): JsonObject | undefined {
  if (mediaType.split(";")[0]!.trim().toLowerCase() !== "application/problem+json") return undefined;
  try {
    return parseObject(content, MAX_PROBLEM_BYTES);
  } catch {
    return undefined;
  }
}

/** Retry-After in seconds, at most a day. A date counts from the same answer's Date. */
function retryAfter(text: string | undefined, date: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  if (/^\d{1,9}$/.test(text)) return Math.min(Number(text), MAX_RETRY_AFTER_S);
  const [until, since] = [timeOf(text), timeOf(date)];
  if (until === undefined || since === undefined) return undefined;
  return Math.min(Math.max(until - since, 0), MAX_RETRY_AFTER_S);
}

/** Unix seconds of an HTTP date, in the form that all senders use (RFC 9110, section 5.6.7). */
export function timeOf(text: string | undefined): number | undefined {
  if (text === undefined || !/^[A-Z][a-z]{2}, \d{2} [A-Z][a-z]{2} \d{4} \d{2}:\d{2}:\d{2} GMT$/.test(text)) return undefined;
  const time = Date.parse(text);
  return Number.isNaN(time) ? undefined : time / 1000;
}

/** How long a fetched document may be used; a day at most. */
export function maxAge(cacheControl: string | null): number {
  const found = /(?:^|[,\s])max-age=(\d{1,9})(?:$|[,\s])/.exec((cacheControl ?? "").toLowerCase());
  return found ? Math.min(Number(found[1]), MAX_AGE_S) : MAX_AGE_S;
}

export function jsonOf(content: Uint8Array): unknown {
  try {
    return JSON.parse(textOf(content));
  } catch {
    throw new TransportError("the answer is not JSON");
  }
}

