// Where the keys come from that requests are sealed to: pinned, signed by identity keys, or
// as the server offers them.

import { StatementError, type TrustedKeys } from "./dsse.js";
import { TransportError } from "./errors.js";
import { GATEWAY_PATH, maxAge } from "./exchange.js";
import { chooseConfig, KEYS_MEDIA_TYPE, type KeyConfig } from "./keyconfig.js";
import {
  SIGNED_KEYS_MEDIA_TYPE,
  SIGNED_KEYS_PATH,
  SIGNED_KEYS_V2_PATH,
  verifySignedKeys,
  versionFor,
} from "./signedkeys.js";
import type { Answer } from "./transport.js";

const MAX_KEYS_BYTES = 1 << 20;

export type Get = (url: string, maxBytes: number, signal?: AbortSignal) => Promise<Answer>;

/** The key to seal to, asked for again when it may have been replaced. */
export class KeySource {
  #choice: { config: KeyConfig; goodUntil: number } | undefined;
  readonly pinned: boolean;

  constructor(
    readonly url: string,
    readonly identities: Promise<TrustedKeys>,
    pinned: Uint8Array | undefined,
    readonly get: Get,
    readonly nowS: () => number,
  ) {
    this.pinned = pinned !== undefined;
    if (pinned) this.#choice = { config: chooseConfig(pinned), goodUntil: Infinity };
  }

  forget(): void {
    if (!this.pinned) this.#choice = undefined;
  }

  async choose(signal?: AbortSignal): Promise<KeyConfig> {
    if (this.#choice === undefined || this.nowS() >= this.#choice.goodUntil) {
      const identities = await this.identities;
      const [document, goodUntil] = identities.size
        ? await this.#signed(identities, signal)
        : await this.#plain(signal);
      this.#choice = { config: chooseConfig(document), goodUntil };
    }
    return this.#choice.config;
  }

  async #plain(signal?: AbortSignal): Promise<[Uint8Array, number]> {
    const answer = await this.#fetch(GATEWAY_PATH, KEYS_MEDIA_TYPE, signal);
    return [answer.content, this.nowS() + maxAge(answer.field("cache-control"))];
  }

  async #signed(identities: TrustedKeys, signal?: AbortSignal): Promise<[Uint8Array, number]> {
    const version = versionFor(identities);
    const path = version === 1 ? SIGNED_KEYS_PATH : SIGNED_KEYS_V2_PATH;
    const answer = await this.#fetch(path, SIGNED_KEYS_MEDIA_TYPE, signal);
    const now = this.nowS();
    try {
      const signed = await verifySignedKeys(answer.content, identities, now, version);
      return [signed.document, Math.min(now + maxAge(answer.field("cache-control")), signed.notAfter)];
    } catch (error) {
      if (error instanceof StatementError) throw new TransportError(`the server's signed keys: ${error.message}`);
      throw error;
    }
  }

  async #fetch(path: string, mediaType: string, signal?: AbortSignal): Promise<Answer> {
    const answer = await this.get(this.url + path, MAX_KEYS_BYTES, signal);
    if (answer.status !== 200 || answer.field("content-type") !== mediaType) {
      throw new TransportError(`the server offers no keys at ${path} (${answer.status})`);
    }
    return answer;
  }
}
