// Bytes to a server and back, by fetch: whole, bounded, without cookies or a referrer.

import { concatAll } from "./bytes.js";
import { TransportError } from "./errors.js";

export interface Answer {
  status: number;
  field(name: string): string | null;
  content: Uint8Array;
}

export type Fetch = (url: string, init: RequestInit) => Promise<globalThis.Response>;

export interface Outgoing {
  method: "GET" | "POST";
  url: string;
  mediaType?: string;
  content?: Uint8Array<ArrayBuffer>;
  /** Of the answer: what is longer is refused while it is read. */
  maxBytes: number;
}

/**
 * Sends one request.
 *
 * @throws TransportError there is no answer, or a longer one; an abort passes as it is.
 */
export async function send(out: Outgoing, fetch: Fetch, timeoutS: number, signal?: AbortSignal): Promise<Answer> {
  const timeout = AbortSignal.timeout(Math.ceil(timeoutS * 1000));
  const init: RequestInit = {
    method: out.method,
    signal: signal ? AbortSignal.any([signal, timeout]) : timeout,
    credentials: "omit",
    redirect: "error",
    referrerPolicy: "no-referrer",
    cache: "no-store",
    ...(out.content && { body: out.content, headers: { "content-type": out.mediaType! } }),
  };
  try {
    const answer = async (): Promise<Answer> => {
      const response = await fetch(out.url, init);
      const content = await read(response, out.maxBytes);
      return { status: response.status, field: (name) => response.headers.get(name), content };
    };
    return await unlessAborted(answer(), init.signal!);
  } catch (cause) {
    if (signal?.aborted || cause instanceof TransportError) throw cause;
    if (timeout.aborted) throw new TransportError(`the server did not answer within ${timeoutS} s`, { cause });
    const why = cause instanceof Error ? cause.message : String(cause);
    throw new TransportError(
      `the server cannot be reached (${why}): offline, or it does not allow pages of this origin`,
      { cause },
    );
  }
}

/** What is awaited, or an abort first: what callers bring need not heed signals. */
export function unlessAborted<T>(awaited: Promise<T>, signal: AbortSignal): Promise<T> {
  return new Promise((resolve, reject) => {
    const aborted = () => reject(signal.reason as Error);
    awaited.then(resolve, reject).finally(() => signal.removeEventListener("abort", aborted));
    if (signal.aborted) aborted();
    else signal.addEventListener("abort", aborted, { once: true });
  });
}

async function read(response: globalThis.Response, maxBytes: number): Promise<Uint8Array> {
  const reader = response.body?.getReader();
  const parts: Uint8Array[] = [];
  let size = 0;
  while (reader) {
    const { done, value } = await reader.read();
    if (done) break;
    size += value.length;
    if (size > maxBytes) {
      await reader.cancel();
      throw new TransportError(`the answer has more than ${maxBytes} bytes`);
    }
    parts.push(value);
  }
  return concatAll(parts);
}
