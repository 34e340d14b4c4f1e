// The client: what callers ask for, and what of it may be sent again.
//
// A request is repeated only where the server says that nothing ran:
//
// 1. the key it was sealed to is gone (422 #ohttp-key): once, with fresh keys;
// 2. its Date is off (400 #date): once, with the server's Date, believed only when sealed;
// 3. no valid token (401), and the token's source now gives another one: once;
// 4. too much work (429, 503) with a Retry-After, which is only sent when nothing ran: as
//    often and as long as `retry` allows.

import { decodeResponse as decodeMessage, type Response } from "./bhttp.js";
import { loadKeys, type TrustedKeys } from "./dsse.js";
import {
  AuthenticationError,
  ClockError,
  ConfigurationError,
  InvalidInputError,
  KeyRefusedError,
  NotFoundError,
  OverloadedError,
  PassportError,
  ServerRefusedError,
  TransportError,
} from "./errors.js";
import {
  checkToken,
  checkUrl,
  expiredSince,
  fieldOf,
  GATEWAY_PATH,
  jsonOf,
  modelPath,
  refusal,
  refusalOf,
  sealedMessage,
  type Message,
} from "./exchange.js";
import { isObject, member, type JsonObject } from "./json.js";
import { KeySource, type Get } from "./keysource.js";
import { seal, sealChunked } from "./ohttp.js";
import { checkNames, checkNumbers, retryOf, type Options, type RetryPolicy } from "./options.js";
import { verifyPassport, type Passport } from "./passport.js";
import {
  decodeResponse,
  encodeRequest,
  held,
  joined,
  rowsFrom,
  toTensor,
  type Datatype,
  type Input,
  type Tensor,
} from "./tensors.js";
import { send, unlessAborted, type Outgoing } from "./transport.js";

/** By which the receipt of an answer is fetched. */
export interface ReceiptNumber {
  number: string;
  /** Names the answer's record. */
  requestId: string;
  model: string;
}

export interface Answers {
  /** By name. */
  outputs: Record<string, Tensor>;
  /** One for each request, in their order; empty where the server gives no receipts. */
  receipts: ReceiptNumber[];
}

export interface Asked {
  /** Aborts it; what was sent may have run. */
  signal?: AbortSignal;
}

const OVERHEAD_BYTES = 64 << 10;
const MAX_REFUSED_PARTS_STATUS = 413;

/** Talks to one Sealgate server, sealed: nobody in between sees path, token, payload or answer. */
export class Client {
  readonly url: string;
  readonly #options: Options;
  readonly #gateway: string;
  readonly #keys: KeySource;
  readonly #trusted: Promise<TrustedKeys>;
  readonly #retry: RetryPolicy;
  readonly #maxBytes: number;
  readonly #metadata = new Map<string, JsonObject>();
  readonly #passports = new Map<string, { passport: Passport; checkedAtS: number }>();
  #clockOffsetS = 0;
  #speaksChunked = true;

  /**
   * Nothing is sent yet.
   *
   * @throws ConfigurationError a URL cannot be used; keys are looked at with the first request.
   */
  constructor(options: Options) {
    checkNames(options);
    checkNumbers(options);
    this.#options = options;
    this.url = checkUrl(options.url, "url");
    this.#gateway = options.relayUrl === undefined ? this.url + GATEWAY_PATH : checkUrl(options.relayUrl, "relayUrl");
    if (typeof options.token !== "function") checkToken(options.token);
    if (options.requirePassport && !options.trustedKeys?.length) {
      throw new ConfigurationError("requirePassport: needs trustedKeys");
    }
    this.#maxBytes = options.maxResponseBytes ?? 64 << 20;
    this.#retry = retryOf(options.retry);
    this.#trusted = lazily(loadKeys("trustedKeys", options.trustedKeys ?? [], options.mlDsa65));
    const identities = lazily(loadKeys("identityKeys", options.identityKeys ?? [], options.mlDsa65));
    const get: Get = (url, maxBytes, signal) => this.#send({ method: "GET", url, maxBytes }, signal);
    this.#keys = new KeySource(this.url, identities, options.keyConfigs, get, now);
  }

  /** Whether a model is loaded and may answer. */
  async ready(model: string, asked: Asked = {}): Promise<boolean> {
    try {
      await this.#call({ method: "GET", path: modelPath(model, "/ready") }, asked, model);
      return true;
    } catch (error) {
      if (error instanceof NotFoundError || error instanceof OverloadedError) return false;
      throw error;
    }
  }

  /** The server's name, version and the protocol extensions it has. */
  async serverMetadata(asked: Asked = {}): Promise<JsonObject> {
    return object(await this.#call({ method: "GET", path: "/v2" }, asked), "the server's metadata");
  }

  /** The model's v2 metadata: tensors, and its columns and labels. */
  async metadata(model: string, asked: Asked = {}): Promise<JsonObject> {
    await this.#checkPassport(model, asked);
    const response = await this.#call({ method: "GET", path: modelPath(model) }, asked, model);
    const metadata = object(response, "the model's metadata");
    for (const tensor of [...tensorsOf(metadata, "inputs"), ...tensorsOf(metadata, "outputs")]) {
      if (typeof tensor["name"] !== "string" || typeof tensor["datatype"] !== "string") {
        throw new TransportError("the model's metadata is malformed");
      }
    }
    this.#metadata.set(model, metadata);
    return metadata;
  }

  /**
   * Runs a model.
   *
   * Values are converted to the model's datatypes where none changes beyond float rounding;
   * the model's metadata is fetched once for that. More rows than the model takes in a
   * request are sent in several, one after the other.
   *
   * @param inputs by tensor name, as they are now: later changes are not sent.
   * @throws TensorError an input cannot be sent as the model's datatype.
   * @throws ServerRefusedError the server's problem details, for instance which tensor it
   *   expected otherwise.
   * @throws PassportError one is required, and does not verify.
   * @throws TransportError no usable answer.
   */
  async infer(model: string, inputs: Record<string, Input>, asked: Asked = {}): Promise<Answers> {
    const own = Object.entries(inputs).map(([name, input]) => [name, held(input)] as const);
    await this.#checkPassport(model, asked);
    const metadata = this.#metadata.get(model) ?? (await this.metadata(model, asked));
    const known = new Map(tensorsOf(metadata, "inputs").map((tensor) => [tensor["name"], tensor["datatype"]]));
    const tensors = Object.fromEntries(
      own.map(([name, input]) => [name, toTensor(name, input, known.get(name) as Datatype | undefined)]),
    );
    const rows = separableRows(tensors, metadata);
    const most = member(metadata["parameters"], "max_rows");
    if (!rows || typeof most !== "number" || !(most >= 1) || rows <= most) return this.#ask(model, tensors, asked);
    return this.#inParts(model, tensors, rows, Math.floor(most), asked);
  }

  /** Fetches the model's verdict and evidence, and verifies them. */
  async passport(model: string, asked: Asked = {}): Promise<Passport> {
    const trusted = await this.#trusted;
    if (!trusted.size) throw new PassportError("no trusted key: give trustedKeys to check a passport");
    const response = await this.#call({ method: "GET", path: modelPath(model, "/attestations") }, asked, model);
    const passport = await verifyPassport(jsonOf(response.content), model, trusted);
    this.#passports.set(model, { passport, checkedAtS: now() });
    return passport;
  }

  /**
   * The receipt of an answer: proof that its record is in the audit log, as bytes to keep.
   *
   * What proves it is read by `sealgate receipt verify`; nothing of it is verified here.
   *
   * @throws OverloadedError no checkpoint covers the request yet; repeated within `retry`.
   */
  async receipt(number: ReceiptNumber | string, asked: Asked = {}): Promise<Uint8Array> {
    const text = typeof number === "string" ? number : number.number;
    const response = await this.#call({ method: "GET", path: `/v2/receipts/${encodeURIComponent(text)}` }, asked);
    return response.content.slice();
  }

  async #ask(model: string, tensors: Record<string, Tensor>, asked: Asked): Promise<Answers> {
    const { content, headBytes } = encodeRequest(tensors);
    const fields = [
      ["content-type", "application/octet-stream"],
      ["inference-header-content-length", `${headBytes}`],
    ] as const;
    const message = { method: "POST", path: modelPath(model, "/infer"), fields, content, tensorsAt: headBytes };
    try {
      return answersOf(await this.#call(message, asked, model), model);
    } catch (error) {
      // Perhaps the model is another one by now: ask again, next time.
      if (error instanceof InvalidInputError) this.#metadata.delete(model);
      throw error;
    }
  }

  async #inParts(model: string, tensors: Record<string, Tensor>, rows: number, most: number, asked: Asked): Promise<Answers> {
    const parts: Answers[] = [];
    let size = most;
    for (let start = 0; start < rows; ) {
      try {
        parts.push(await this.#ask(model, rowsFrom(tensors, start, start + size), asked));
        start += size;
      } catch (error) {
        if (!(error instanceof InvalidInputError)) throw error;
        if (error.status !== MAX_REFUSED_PARTS_STATUS || size === 1) {
          error.message += `; in rows ${start} to ${Math.min(start + size, rows) - 1}`;
          throw error;
        }
        size = Math.floor(size / 2);
      }
    }
    return { outputs: joined(parts.map(({ outputs }) => outputs)), receipts: parts.flatMap(({ receipts }) => receipts) };
  }

  async #checkPassport(model: string, asked: Asked): Promise<void> {
    if (!this.#options.requirePassport) return;
    const known = this.#passports.get(model);
    if (known === undefined || now() - known.checkedAtS > (this.#options.passportMaxAgeS ?? 3600)) {
      await this.passport(model, asked);
    }
  }

  // One sealed request, and what may be repeated

  /** A successful answer, or the error that it stands for; its text names the model. */
  async #call(message: Message, asked: Asked, model?: string): Promise<Response> {
    let token = await this.#token(false, asked.signal);
    const tried = new Set<string>();
    for (let waits = 0; ; ) {
      try {
        const response = await this.#exchange({ ...message, token }, asked, tried);
        const refused = refusalOf(response);
        if (refused === undefined) return response;
        throw refused;
      } catch (error) {
        const wait = error instanceof OverloadedError ? this.#waitS(error, waits++) : undefined;
        const refused = token;
        if (error instanceof AuthenticationError && once(tried, "token")) token = await this.#token(true, asked.signal);
        if (wait === undefined && token === refused) throw this.#told(error, token, model);
        if (wait !== undefined) await pause(wait, asked.signal);
      }
    }
  }

  /** How long to wait before the next attempt; undefined not to make one. */
  #waitS(error: OverloadedError, waits: number): number | undefined {
    const { maxRetries, maxWaitS, jitter } = this.#retry;
    if (error.retryAfterS === undefined || waits >= maxRetries) return undefined;
    const wait = error.retryAfterS * (1 + jitter * Math.random());
    return wait <= maxWaitS ? wait : undefined;
  }

  /** An error whose text names the model, and since when the token is expired. */
  #told(error: unknown, token: string, model: string | undefined): unknown {
    if (!(error instanceof ServerRefusedError)) return error;
    if (model !== undefined) error.message = `${model}: ${error.message}`;
    if (error instanceof AuthenticationError) error.message += expiredSince(token, this.#nowS());
    return error;
  }

  async #token(refused: boolean, signal?: AbortSignal): Promise<string> {
    const { token } = this.#options;
    if (typeof token !== "function") return checkToken(token);
    const given = Promise.resolve(token({ refused }));
    return checkToken(await (signal ? unlessAborted(given, signal) : given));
  }

  /** The inner response, after recovering from a stale key or a wrong clock. */
  async #exchange(message: Message, asked: Asked, tried: Set<string>): Promise<Response> {
    for (;;) {
      try {
        const response = await this.#attempt(message, asked);
        const error = response.status === 400 ? refusalOf(response) : undefined;
        if (!(error instanceof ClockError) || error.serverTimeS === undefined || !once(tried, "clock")) return response;
        this.#clockOffsetS = error.serverTimeS - now();
      } catch (error) {
        if (!(error instanceof KeyRefusedError) || this.#keys.pinned || !once(tried, "key")) throw error;
        this.#keys.forget();
      }
    }
  }

  async #attempt(message: Message, asked: Asked): Promise<Response> {
    const config = await this.#keys.choose(asked.signal);
    const bytes = sealedMessage(message, this.url, this.#nowS());
    const threshold = this.#options.chunkedAboveBytes === undefined ? 16 << 20 : this.#options.chunkedAboveBytes;
    const inChunks = this.#speaksChunked && threshold !== null && (message.content?.length ?? 0) > threshold;
    const sealed = await (inChunks ? sealChunked : seal)(config, bytes);
    const { mediaType, content } = sealed;
    // Padding and framing come on top of the content.
    const maxBytes = 2 * this.#maxBytes + OVERHEAD_BYTES;
    const answer = await this.#send({ method: "POST", url: this.#gateway, mediaType, content, maxBytes }, asked.signal);
    if (answer.status === 415 && inChunks) {
      // A gateway without chunks. The content's type is all that it could see.
      this.#speaksChunked = false;
      return this.#attempt(message, asked);
    }
    if (answer.status !== 200 || answer.field("content-type") !== sealed.responseMediaType) {
      throw refusal(answer.status, (name) => answer.field(name) ?? undefined, answer.content);
    }
    return decodeMessage(await sealed.open(answer.content), this.#maxBytes);
  }

  #nowS(): number {
    return now() + this.#clockOffsetS;
  }

  #send(out: Outgoing, signal?: AbortSignal) {
    const fetch = this.#options.fetch ?? ((url, init) => globalThis.fetch(url, init));
    return send(out, fetch, this.#options.timeoutS ?? 30, signal);
  }
}

const now = (): number => Date.now() / 1000;

/** A promise whose failure is told to whoever awaits it, and to nobody before. */
function lazily<T>(promise: Promise<T>): Promise<T> {
  promise.catch(() => undefined);
  return promise;
}

function once(tried: Set<string>, what: string): boolean {
  return tried.size !== tried.add(what).size;
}

function pause(seconds: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const aborted = () => {
      clearTimeout(timer);
      reject(signal!.reason as Error);
    };
    const timer = setTimeout(() => {
      signal?.removeEventListener("abort", aborted);
      resolve();
    }, seconds * 1000);
    signal?.addEventListener("abort", aborted);
  });
}

function object(response: Response, what: string): JsonObject {
  const value = jsonOf(response.content);
  if (!isObject(value)) throw new TransportError(`${what} is malformed`);
  return value;
}

function tensorsOf(metadata: JsonObject, role: "inputs" | "outputs"): JsonObject[] {
  const tensors = metadata[role];
  if (!Array.isArray(tensors) || !tensors.every(isObject)) throw new TransportError("the model's metadata is malformed");
  return tensors;
}

/** How many rows a request has that may be sent in several; 0 if it may not. */
function separableRows(tensors: Record<string, Tensor>, metadata: JsonObject): number {
  const lengths = new Set(Object.values(tensors).map(({ shape }) => shape[0] ?? 0));
  const apart = [...tensorsOf(metadata, "inputs"), ...tensorsOf(metadata, "outputs")].every(
    ({ shape }) => Array.isArray(shape) && shape[0] === -1,
  );
  return apart && lengths.size === 1 ? [...lengths][0]! : 0;
}

function answersOf(response: Response, model: string): Answers {
  const length = fieldOf(response.fields, "inference-header-content-length");
  const headBytes = length === undefined ? response.content.length : /^\d{1,12}$/.test(length) ? Number(length) : Infinity;
  if (headBytes > response.content.length) throw new TransportError("the answer is unusable: its JSON is cut");
  const number = fieldOf(response.fields, "sealgate-receipt");
  const requestId = fieldOf(response.fields, "x-request-id");
  const receipts = number !== undefined && requestId !== undefined ? [{ number, requestId, model }] : [];
  return { outputs: decodeResponse(response.content, headBytes), receipts };
}

