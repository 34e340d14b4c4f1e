// The errors of this client, in one tree:
//
//   SealgateError
//   ├── TensorError            an input cannot be sent as the model's datatype
//   ├── ConfigurationError     the client's own options cannot be used
//   ├── TransportError         no answer, or one that is not the protocol's
//   ├── PassportError          the model's attestations do not verify
//   └── ServerRefusedError     the server's problem details (RFC 9457)
//       ├── InvalidInputError      400, 413, 415: the request itself
//       ├── AuthenticationError    401: no valid token
//       ├── PermissionDeniedError  403: the token does not grant this
//       ├── NotFoundError          404: no such model, version or route
//       ├── ClockError             the request's Date is not the server's
//       ├── KeyRefusedError        422: the key it was sealed to is gone
//       ├── OverloadedError        429, 503, a receipt's 409: not now
//       └── ServerFailedError      any other 5xx

/** Root of every error that this client throws on purpose. */
export class SealgateError extends Error {
  override name = "SealgateError";
}

/** An input cannot be sent as the model's datatype; the message names the tensor. */
export class TensorError extends SealgateError {
  override name = "TensorError";
}

/** An option of the client cannot be used; the message names it. */
export class ConfigurationError extends SealgateError {
  override name = "ConfigurationError";
}

/** The server did not answer, or not in the protocol. */
export class TransportError extends SealgateError {
  override name = "TransportError";
}

/** A model's attestations do not verify against the keys that the client trusts. */
export class PassportError extends SealgateError {
  override name = "PassportError";
}

/** A problem document (RFC 9457). */
export interface Problem {
  type?: unknown;
  title?: unknown;
  detail?: unknown;
  [member: string]: unknown;
}

export interface Refusal {
  /** How long the server asks to wait; it says so only where nothing ran. */
  retryAfterS?: number | undefined;
  /** The answer came sealed, so it is the server's own; anyone on the way can write another. */
  sealed?: boolean;
  /** Names the request's audit record, where the server gave one. */
  requestId?: string | undefined;
  /** The server's clock in seconds since 1970, of a `ClockError`. */
  serverTimeS?: number | undefined;
}

/** The server answered with problem details (RFC 9457). */
export class ServerRefusedError extends SealgateError {
  override name = "ServerRefusedError";
  readonly retryAfterS: number | undefined;
  readonly sealed: boolean;
  readonly requestId: string | undefined;
  readonly serverTimeS: number | undefined;

  constructor(
    readonly status: number,
    readonly problem: Problem,
    refusal: Refusal = {},
  ) {
    // Members of another type are ignored (RFC 9457, section 3.1).
    const said = (value: unknown) => (typeof value === "string" ? value : "");
    const detail = said(problem.detail) && `: ${said(problem.detail)}`;
    super(oneLine(`${status} ${said(problem.title) || "refused"}${detail}`));
    this.retryAfterS = refusal.retryAfterS;
    this.sealed = refusal.sealed ?? false;
    this.requestId = refusal.requestId;
    this.serverTimeS = refusal.serverTimeS;
  }

  /** The problem's `type` URI, `about:blank` when it has none. */
  get type(): string {
    return typeof this.problem.type === "string" ? this.problem.type : "about:blank";
  }
}

export class InvalidInputError extends ServerRefusedError {
  override name = "InvalidInputError";
}

export class AuthenticationError extends ServerRefusedError {
  override name = "AuthenticationError";
}

export class PermissionDeniedError extends ServerRefusedError {
  override name = "PermissionDeniedError";
}

export class NotFoundError extends ServerRefusedError {
  override name = "NotFoundError";
}

export class ClockError extends ServerRefusedError {
  override name = "ClockError";
}

export class KeyRefusedError extends ServerRefusedError {
  override name = "KeyRefusedError";
}

export class OverloadedError extends ServerRefusedError {
  override name = "OverloadedError";
}

export class ServerFailedError extends ServerRefusedError {
  override name = "ServerFailedError";
}

// An unsealed problem can come from anyone on the way, and ends up in a page or a log.
function oneLine(text: string): string {
  const short = text.length > 1000 ? `${text.slice(0, 1000)}…` : text;
  return short.replace(/[\p{Cc}\p{Cf}\p{Zl}\p{Zp}\p{Cs}]/gu, " ");
}
