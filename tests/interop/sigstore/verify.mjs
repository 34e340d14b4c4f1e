// What `cosign verify-blob-attestation --key` demands, by Sigstore's own library:
//   node verify.mjs BUNDLE PUBLIC_KEY BLOB TYPE [TSA_CERTIFICATE ROOT]
// The bundle is v0.3 and its signature the key's; no transparency log is asked. Then the
// blob's digest is among the statement's subjects, and the predicate is of the type.
// With certificates of an authority of time, a stamp of it is demanded.
import { createHash, createPublicKey, X509Certificate } from "node:crypto";
import { readFileSync } from "node:fs";
import { bundleFromJSON } from "@sigstore/bundle";
import { toSignedEntity, toTrustMaterial, Verifier } from "@sigstore/verify";

const [bundleFile, keyFile, blobFile, type, ...tsa] = process.argv.slice(2);
const bundle = bundleFromJSON(JSON.parse(readFileSync(bundleFile)));
const publicKey = createPublicKey(readFileSync(keyFile));
const certificates = tsa.map((file) => ({ rawBytes: new X509Certificate(readFileSync(file)).raw }));
const timestampAuthorities = tsa.length ? [{ certChain: { certificates } }] : [];
const root = { tlogs: [], ctlogs: [], certificateAuthorities: [], timestampAuthorities };
const material = toTrustMaterial(root, () => ({ publicKey, validFor: () => true }));
const thresholds = { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: tsa.length ? 1 : 0 };
new Verifier(material, thresholds).verify(toSignedEntity(bundle));

const { payload, payloadType } = bundle.content.dsseEnvelope;
const statement = JSON.parse(payload);
const sha256 = createHash("sha256").update(readFileSync(blobFile)).digest("hex");
const demands = {
  payloadType: payloadType === "application/vnd.in-toto+json",
  _type: statement._type === "https://in-toto.io/Statement/v1",
  predicateType: statement.predicateType === type,
  subject: statement.subject.some(({ digest }) => digest.sha256 === sha256),
};
for (const [name, met] of Object.entries(demands)) {
  if (!met) throw new Error(`not met: ${name}`);
}
