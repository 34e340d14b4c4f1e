// A real OpenID provider over https on 127.0.0.1, as docs/access.md configures it.
// One argument: a JSON file with port, certificate, key, jwks, lifetime and clients.
// Prints a refresh token, which nobody should take for an access token, and "ready".
import { readFileSync } from "node:fs";
import { createServer } from "node:https";

import Provider from "oidc-provider";

const given = JSON.parse(readFileSync(process.argv[2], "utf8"));
const SCOPES = "infer:toy metadata:toy";

function shownCertificate(ctx) {
  return ctx.socket.getPeerX509Certificate()?.toString();
}

const provider = new Provider(`https://127.0.0.1:${given.port}`, {
  clients: given.clients.map((client) => ({
    grant_types: ["client_credentials"],
    redirect_uris: [],
    response_types: [],
    // There is no RSA key here, which is what these would be by default.
    id_token_signed_response_alg: "ES256",
    introspection_signed_response_alg: "ES256",
    ...client,
  })),
  clientAuthMethods: ["client_secret_basic", "self_signed_tls_client_auth"],
  jwks: given.jwks,
  scopes: SCOPES.split(" "),
  ttl: { ClientCredentials: given.lifetime, RefreshToken: given.lifetime },
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    introspection: { enabled: true, allowedPolicy: () => true },
    revocation: { enabled: true },
    dPoP: { enabled: true },
    mTLS: {
      enabled: true,
      certificateBoundAccessTokens: true,
      selfSignedTlsClientAuth: true,
      getCertificate: shownCertificate,
    },
    resourceIndicators: {
      enabled: true,
      getResourceServerInfo: (ctx, resource) => ({
        scope: SCOPES,
        audience: resource.split("/").at(-2),
        accessTokenFormat: resource.split("/").at(-1),
        jwt: { sign: { alg: "ES256" } },
      }),
    },
  },
});

const client = await provider.Client.find("notebook");
const refresh = new provider.RefreshToken({
  client, accountId: "alice", scope: "infer:toy", gty: "authorization_code",
});
console.log(`refresh ${await refresh.save()}`);

const tls = {
  cert: readFileSync(given.certificate),
  key: readFileSync(given.key),
  requestCert: true,
  // Any certificate: one that signs itself is registered as the client's (RFC 8705, 2.2).
  rejectUnauthorized: false,
};
createServer(tls, provider.callback()).listen(given.port, "127.0.0.1", () => {
  console.log("ready");
});
