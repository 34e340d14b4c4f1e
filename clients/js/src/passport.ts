// The passport: a model's signed verdict and the evidence behind it, verified in the page.
//
// 1. the verdict is signed by a key the client trusts, and passed; where the client trusts an
//    ML-DSA-65 key, it is signed by such a key too, over the same payload;
// 2. it is about the model that was asked for;
// 3. each attestation and waiver it rests on is present, byte for byte;
// 4. each attestation and waiver is about the same files as the verdict;
// 5. each attestation binds the report that came with it, byte for byte, and says that it
//    passed; a waiver of a check that failed excuses that.
//
// Who may sign which attestation is the server's policy, whose digest the verdict names; the
// signer of the verdict vouches for that. Statements are in-toto v1, the verdict is a
// verification summary (VSA v1), attestations are test results v0.1.

import { sha256Hex, textOf, utf8, type Bytes } from "./bytes.js";
import {
  decodeBase64,
  ECDSA_P256,
  ML_DSA_65,
  preAuthenticationEncoding,
  StatementError,
  type TrustedKeys,
} from "./dsse.js";
import { PassportError } from "./errors.js";
import { isObject, member, parseObject, type JsonObject } from "./json.js";

/** A requirement of the policy that was let pass, for a reason and for a time. */
export interface Waiver {
  kind: string;
  reason: string;
  created: string;
  expires: string;
  metric?: string;
  condition?: string;
  check?: string;
}

/** A verified passport. */
export interface Passport {
  /** `name:version`. */
  model: string;
  /** When the policy was evaluated, RFC 3339. */
  verifiedAt: string;
  /** Digest of the policy that was met. */
  policySha256: string;
  /** Root digest of the bundle, as records and receipts name it. */
  modelSha256: string;
  /** The decoded evidence by kind: `privacy`, `robustness`, … */
  reports: Record<string, JsonObject>;
  waivers: Record<string, Waiver>;
  /** How much of each answer may leave; empty for all of it. */
  outputPolicy: JsonObject;
}

const PAYLOAD_TYPE = "application/vnd.in-toto+json";
const BUNDLE_MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json";
const STATEMENT_TYPE = "https://in-toto.io/Statement/v1";
const VSA_TYPE = "https://slsa.dev/verification_summary/v1";
const TEST_RESULT_TYPE = "https://in-toto.io/attestation/test-result/v0.1";
const SCAI_TYPE = "https://in-toto.io/attestation/scai/v0.3";
const WAIVER_TYPE = "https://sealgate.dev/waiver/v1";
const MAX_BUNDLE_BYTES = 4 << 20;
const MAX_STATEMENT_BYTES = 3 << 20;
const MAX_REPORT_BYTES = 16 << 20;
const MAX_SUBJECTS = 64;
const MAX_LINE = 1000;
const SHA256 = /^[0-9a-f]{64}$/;

/**
 * Verifies the document that `/v2/models/{model}/attestations` answers with.
 *
 * @param document decoded JSON, possibly hostile.
 * @param keys that may sign verdicts.
 * @throws PassportError any of the module's checks failed.
 */
export async function verifyPassport(document: unknown, model: string, keys: TrustedKeys): Promise<Passport> {
  try {
    return await verify(document, model, keys);
  } catch (error) {
    if (error instanceof StatementError || error instanceof SyntaxError) {
      throw new PassportError(`passport of ${model}: ${error.message}`);
    }
    throw error;
  }
}

/** The value of a metric that the evidence states. */
export function metricOf(passport: Passport, kind: string, name: string): number {
  const value = member(member(member(passport.reports[kind], "metrics"), name), "value");
  if (typeof value !== "number") throw new PassportError(`the evidence states no ${kind} ${name}`);
  return value;
}

async function verify(document: unknown, model: string, keys: TrustedKeys): Promise<Passport> {
  const payload = await opened(text(document, "verdict"), keys, ECDSA_P256);
  if ([...keys.values()].some((key) => key.algorithm === ML_DSA_65)) {
    const second = await opened(text(document, "verdict_mldsa"), keys, ML_DSA_65);
    if (second !== payload) throw new StatementError("two verdicts, not one");
  }
  const verdict = statementOf(utf8(payload));
  const summary = summaryOf(verdict);
  const { name, sha256: modelSha256 } = verdict.subjects[0]!;
  if (name.split(":")[0] !== model) throw new StatementError(`the verdict is for ${name}`);
  const inputs = new Inputs(verdict, summary.inputs);
  const waivers = Object.create(null) as Record<string, Waiver>;
  for (const [kind, item] of entries(document, "waivers", true)) waivers[kind] = await waiverOf(kind, item, inputs);
  const reports = Object.create(null) as Record<string, JsonObject>;
  for (const [kind, item] of entries(document, "evidence")) reports[kind] = await reportOf(kind, item, inputs, waivers[kind]);
  if (inputs.left.size) throw new StatementError("evidence is missing");
  const { verifiedAt, policySha256, outputPolicy } = summary;
  return { model: name, modelSha256, verifiedAt, policySha256, outputPolicy, reports, waivers };
}

// Sigstore bundles v0.3, with a public key's hint in place of a certificate

function envelopeOf(bundle: Bytes): { envelope: unknown; hint: unknown; payload: Bytes } {
  const value = parseObject(bundle, MAX_BUNDLE_BYTES);
  if (value["mediaType"] !== BUNDLE_MEDIA_TYPE) throw new StatementError("bundle: not a Sigstore bundle v0.3");
  const envelope = member(value, "dsseEnvelope");
  const hint = member(member(member(value, "verificationMaterial"), "publicKey"), "hint");
  return { envelope, hint, payload: decodeBase64(member(envelope, "payload")) };
}

/** The payload of a bundle whose one signature is a trusted key's, of this algorithm. */
async function opened(bundle: string, keys: TrustedKeys, algorithm: string): Promise<string> {
  const { envelope, hint, payload } = envelopeOf(utf8(bundle));
  const key = typeof hint === "string" ? keys.get(hint) : undefined;
  if (key === undefined) throw new StatementError("signed by a key that is not trusted for it");
  if (key.algorithm !== algorithm) throw new StatementError(`expected a signature by ${algorithm}`);
  if (member(envelope, "payloadType") !== PAYLOAD_TYPE) throw new StatementError("envelope: not an in-toto payload");
  const signatures = member(envelope, "signatures");
  if (!Array.isArray(signatures) || signatures.length !== 1) {
    throw new StatementError("envelope: expected exactly one signature");
  }
  const signature = decodeBase64(member(signatures[0], "sig"));
  if (!(await key.verifies(signature, preAuthenticationEncoding(PAYLOAD_TYPE, payload)))) {
    throw new StatementError("signature does not verify");
  }
  try {
    return textOf(payload);
  } catch {
    throw new StatementError("statement: not JSON: invalid UTF-8");
  }
}

// Statements

interface Resource {
  name: string;
  sha256: string;
}

interface Statement {
  subjects: Resource[];
  predicateType: unknown;
  predicate: JsonObject;
}

function resourceOf(value: unknown, where: string, nameOf = "name"): Resource {
  const name = member(value, nameOf);
  const sha256 = member(member(value, "digest"), "sha256");
  if (typeof name !== "string" || typeof sha256 !== "string" || !SHA256.test(sha256)) {
    throw new StatementError(`${where}: expected a name and a sha256 digest`);
  }
  return { name, sha256 };
}

function statementOf(payload: Uint8Array): Statement {
  const value = parseObject(payload, MAX_STATEMENT_BYTES);
  if (value["_type"] !== STATEMENT_TYPE) throw new StatementError("statement: not an in-toto Statement v1");
  const { subject, predicateType, predicate } = value;
  if (!Array.isArray(subject) || !subject.length || subject.length > MAX_SUBJECTS || !isObject(predicate)) {
    throw new StatementError("statement: expected subjects and a predicate");
  }
  return { subjects: subject.map((item) => resourceOf(item, "subject")), predicateType, predicate };
}

function expectType(statement: Statement, type: string, what: string): JsonObject {
  if (statement.predicateType !== type) throw new StatementError(`statement: not ${what}`);
  return statement.predicate;
}

function summaryOf(verdict: Statement) {
  const predicate = expectType(verdict, VSA_TYPE, "a verification summary v1");
  const { inputAttestations, timeVerified, policy, outputPolicy = {}, verificationResult } = predicate;
  if (!Array.isArray(inputAttestations) || typeof timeVerified !== "string" || !isObject(outputPolicy)) {
    throw new StatementError("verdict: malformed");
  }
  if (verificationResult !== "PASSED") throw new StatementError(`the verdict is ${typeof verificationResult === "string" ? verificationResult : "malformed"}`);
  const inputs = inputAttestations.map((item) => resourceOf(item, "inputAttestations", "uri").sha256);
  return { inputs, verifiedAt: timeVerified, policySha256: resourceOf(policy, "policy", "uri").sha256, outputPolicy };
}

/** What a verdict rests on, and which of it has not been seen yet. */
class Inputs {
  readonly left: Set<string>;
  readonly #subjects: string;
  readonly #digests: ReadonlySet<string>;

  constructor(verdict: Statement, digests: string[]) {
    this.#subjects = JSON.stringify(verdict.subjects);
    this.#digests = new Set(digests);
    this.left = new Set(digests);
  }

  /** Checks 3 and 4 for a document; returns its statement. */
  async take(bundle: string, kind: string, what: string): Promise<Statement> {
    const bytes = utf8(bundle);
    const digest = await sha256Hex(bytes);
    if (!this.#digests.has(digest)) throw new StatementError(`${kind}: the verdict does not rest on this ${what}`);
    this.left.delete(digest);
    // The gate checked its signature; here the verdict's over its digest counts.
    const statement = statementOf(envelopeOf(bytes).payload);
    if (JSON.stringify(statement.subjects) !== this.#subjects) {
      throw new StatementError(`${kind}: the ${what} is about something else`);
    }
    return statement;
  }
}

async function reportOf(kind: string, item: unknown, inputs: Inputs, waiver?: Waiver): Promise<JsonObject> {
  const report = utf8(text(item, "report"));
  const digest = await sha256Hex(report);
  const further = member(item, "further") ?? [];
  if (!Array.isArray(further)) throw new StatementError(`${kind}: further attestations are malformed`);
  for (const bundle of [text(item, "attestation"), ...further.map((other) => text({ other }, "other"))]) {
    const statement = await inputs.take(bundle, kind, "attestation");
    const predicate = expectType(statement, TEST_RESULT_TYPE, "a test result v0.1");
    const attributes = member(predicate[SCAI_TYPE], "attributes");
    if (!Array.isArray(attributes) || attributes.length !== 1) {
      throw new StatementError("test result: expected exactly one attribute");
    }
    const attribute = member(attributes[0], "attribute");
    if (typeof attribute !== "string" || attribute.replace(/^SEALGATE_/, "").toLowerCase() !== kind) {
      throw new StatementError(`${kind}: the attestation is about something else`);
    }
    const passed = predicate["result"] === "PASSED" || (predicate["result"] === "FAILED" && waiver?.check !== undefined);
    if (resourceOf(member(attributes[0], "evidence"), "test result").sha256 !== digest || !passed) {
      throw new StatementError(`${kind}: the report is not the one that was signed`);
    }
  }
  return parseObject(report, MAX_REPORT_BYTES);
}

const WAIVER_MEMBERS = ["kind", "reason", "created", "expires", "metric", "condition", "check"];

async function waiverOf(kind: string, item: unknown, inputs: Inputs): Promise<Waiver> {
  const statement = await inputs.take(text({ item }, "item"), kind, "waiver");
  const predicate = expectType(statement, WAIVER_TYPE, "a waiver v1");
  const isLine = (value: unknown) => typeof value === "string" && value !== "" && value.length <= MAX_LINE;
  const members = Object.entries(predicate);
  const targets = ["metric", "condition", "check"].filter((name) => name in predicate);
  if (
    !members.every(([name, value]) => WAIVER_MEMBERS.includes(name) && isLine(value)) ||
    !WAIVER_MEMBERS.slice(0, 4).every((name) => name in predicate) ||
    targets.length > 1 ||
    predicate["kind"] !== kind
  ) {
    throw new StatementError(`${kind}: the waiver is malformed, or for something else`);
  }
  return { ...predicate } as unknown as Waiver;
}

function text(value: unknown, name: string): string {
  const found = member(value, name);
  if (typeof found !== "string") throw new StatementError(`the passport has no ${name}`);
  return found;
}

function entries(document: unknown, name: string, optional = false): [string, unknown][] {
  const value = member(document, name) ?? (optional ? {} : undefined);
  if (!isObject(value)) throw new StatementError(`the passport has no ${name}`);
  return Object.entries(value);
}
