// Sealgate's client for pages and for Node: requests are sealed where they are made.

export {
  Client,
  type Answers,
  type Asked,
  type ReceiptNumber,
} from "./client.js";
export type { MlDsa65Verifier } from "./dsse.js";
export {
  AuthenticationError,
  ClockError,
  ConfigurationError,
  InvalidInputError,
  KeyRefusedError,
  NotFoundError,
  OverloadedError,
  PassportError,
  PermissionDeniedError,
  SealgateError,
  ServerFailedError,
  ServerRefusedError,
  TensorError,
  TransportError,
  type Problem,
} from "./errors.js";
export type { Options, RetryPolicy, TokenSource } from "./options.js";
export type { Json, JsonObject } from "./json.js";
export { metricOf, type Passport, type Waiver } from "./passport.js";
export { numbersOf, type Datatype, type Input, type Nested, type NumericArray, type Scalar, type Tensor } from "./tensors.js";
export type { Fetch } from "./transport.js";
