// What a client is made with, and what of it cannot be used.

import type { MlDsa65Verifier } from "./dsse.js";
import { ConfigurationError } from "./errors.js";
import { isObject } from "./json.js";
import type { Fetch } from "./transport.js";

/** Where access tokens come from: asked before each request, and again once one was refused. */
export type TokenSource = string | ((why: { refused: boolean }) => string | Promise<string>);

export interface RetryPolicy {
  /** After the first attempt; 0 never repeats. */
  maxRetries: number;
  /** Longest wait before one attempt; for a server that asks for more, the error is thrown. */
  maxWaitS: number;
  /** From 0 to 1: the part of each wait that is added at random. */
  jitter: number;
}

export interface Options {
  /** Base URL of the server: https, or http on this machine. */
  url: string;
  token: TokenSource;
  /** PEM public keys of the deployment: seal only to what one of each algorithm signed. */
  identityKeys?: string | readonly string[];
  /** Pinned `application/ohttp-keys` bytes, in place of what the server offers. */
  keyConfigs?: Uint8Array;
  /** PEM public keys whose verdicts are believed. */
  trustedKeys?: string | readonly string[];
  /** Refuse to use a model whose passport does not verify. */
  requirePassport?: boolean;
  /** Verify a model's passport again after this time. */
  passportMaxAgeS?: number;
  /** Verifies ML-DSA-65, where WebCrypto does not. */
  mlDsa65?: MlDsa65Verifier;
  /** Send sealed requests there: an Oblivious Relay (RFC 9458, section 2). */
  relayUrl?: string;
  /** Refuse longer answers while reading. */
  maxResponseBytes?: number;
  /** Send larger requests in protected chunks, where the gateway takes them; null never. */
  chunkedAboveBytes?: number | null;
  /** For each request, its answer included. */
  timeoutS?: number;
  retry?: Partial<RetryPolicy>;
  /** In place of the global one; it sees sealed bytes and key documents. */
  fetch?: Fetch;
}

const NAMES: Record<keyof Options, true> = {
  url: true,
  token: true,
  identityKeys: true,
  keyConfigs: true,
  trustedKeys: true,
  requirePassport: true,
  passportMaxAgeS: true,
  mlDsa65: true,
  relayUrl: true,
  maxResponseBytes: true,
  chunkedAboveBytes: true,
  timeoutS: true,
  retry: true,
  fetch: true,
};

/** A pin that is misspelt, or lost on its way here, would pin nothing: both are errors. */
export function checkNames(options: Options): void {
  const unknown = Object.keys(options).find((name) => !Object.hasOwn(NAMES, name));
  if (unknown !== undefined) throw new ConfigurationError(`${unknown}: no such option`);
  for (const name of ["identityKeys", "trustedKeys", "keyConfigs"] as const) {
    if (name in options && !options[name]?.length) throw new ConfigurationError(`${name}: none is given`);
  }
  if (options.keyConfigs !== undefined && !(options.keyConfigs instanceof Uint8Array)) {
    throw new ConfigurationError("keyConfigs: not a Uint8Array");
  }
}

const RETRY: RetryPolicy = { maxRetries: 2, maxWaitS: 10, jitter: 0.5 };
// The longest time that timers take.
const MAX_TIMEOUT_S = 4_294_967;

/** A bound that is no number would bound nothing. */
export function checkNumbers(options: Options): void {
  checkNumber("maxResponseBytes", options.maxResponseBytes, 0, Number.MAX_SAFE_INTEGER);
  checkNumber("passportMaxAgeS", options.passportMaxAgeS, 0, Infinity);
  checkNumber("chunkedAboveBytes", options.chunkedAboveBytes ?? undefined, -Infinity, Infinity);
  checkNumber("timeoutS", options.timeoutS, 0.001, MAX_TIMEOUT_S);
}

export function retryOf(given: Partial<RetryPolicy> = {}): RetryPolicy {
  if (!isObject(given)) throw new ConfigurationError("retry: not an object");
  const unknown = Object.keys(given).find((name) => !Object.hasOwn(RETRY, name));
  if (unknown !== undefined) throw new ConfigurationError(`retry.${unknown}: no such option`);
  checkNumber("retry.maxRetries", given.maxRetries, 0, Infinity);
  checkNumber("retry.maxWaitS", given.maxWaitS, 0, Infinity);
  checkNumber("retry.jitter", given.jitter, 0, 1);
  const { maxRetries = RETRY.maxRetries, maxWaitS = RETRY.maxWaitS, jitter = RETRY.jitter } = given;
  return { maxRetries, maxWaitS, jitter };
}

function checkNumber(name: string, value: unknown, least: number, most: number): void {
  if (value === undefined || (typeof value === "number" && value >= least && value <= most)) return;
  throw new ConfigurationError(`${name}: not a number from ${least} to ${most}`);
}
