// A real, certified provider (npm oidc-provider): node oidc_provider.mjs PORT REDIRECT BACKCHANNEL,
// with a redirect URI and a logout URI for each client; the first is `evergreen`, then `evergreen-2`.
// People log in as who they say. Run where `oidc-provider` and `jose` are installed.
import { createRequire } from 'node:module';
import * as http from 'node:http';
const require = createRequire(process.cwd() + '/');
const { default: Provider } = await import(require.resolve('oidc-provider'));
const { generateKeyPair, exportJWK } = await import(require.resolve('jose'));
const [port, ...addresses] = process.argv.slice(2);
const issuer = `http://127.0.0.1:${port}`;
const people = {
  olive: { email: 'olive@school.test', email_verified: true, groups: ['eg-owners'] },
  adam: { email: 'adam@school.test', email_verified: true, groups: ['eg-admins'] },
  rosa: { email: 'rosa@reseller.test', email_verified: true, groups: ['eg-support'] },
  mallory: { email: 'mallory@school.test', email_verified: false, groups: ['eg-owners'] },
};
async function key(kid) {
  const { privateKey } = await generateKeyPair('RS256', { extractable: true });
  return { ...(await exportJWK(privateKey)), kid, alg: 'RS256', use: 'sig' };
}
let keys = [await key('k1')];
function client(number) {
  return {
    client_id: number ? `evergreen-${number + 1}` : 'evergreen', client_secret: 'oidc-secret',
    redirect_uris: [addresses[2 * number]],
    grant_types: ['authorization_code'], response_types: ['code'],
    backchannel_logout_uri: addresses[2 * number + 1], backchannel_logout_session_required: true,
    post_logout_redirect_uris: [addresses[2 * number].replace(/\/auth\/sso\/.*/, '/auth/signed-out')],
  };
}
function make() {
  const provider = new Provider(issuer, {
    clients: Array.from({ length: addresses.length / 2 }, (_, number) => client(number)),
    jwks: { keys },
    claims: { openid: ['sub', 'groups'], email: ['email', 'email_verified'], profile: [] },
    conformIdTokenClaims: false,
    features: {
      backchannelLogout: { enabled: true }, devInteractions: { enabled: true },
      rpInitiatedLogout: { enabled: true },
    },
    pkce: { required: () => true },
    cookies: { keys: ['test'] },
    async findAccount(ctx, id) {
      return { accountId: id, async claims() { return { sub: id, ...people[id] }; } };
    },
    // Its own refuses loopback addresses.
    fetch: (url, { dispatcher, ...options }) => fetch(url, options),
  });
  for (const event of ['backchannel.error', 'server_error']) {
    provider.on(event, (...said) => console.log(event, said[1]?.message, said[1]?.cause?.message));
  }
  return provider.callback();
}
let app = make();
http.createServer(async (request, response) => {
  if (request.method === 'POST' && request.url === '/_test/rotate') {
    keys = [await key(`k${Date.now()}`)];
    app = make();
    response.end('{}');
    return;
  }
  app(request, response);
}).listen(+port, '127.0.0.1', () => console.log('ready', issuer));
