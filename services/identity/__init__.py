"""Identity: tenants, users, sessions, credentials of integrators, and the keys that sign tokens.

RPCs: AuthService, TenantService, UserService, EventCredentialService, TokenKeyService; for the
other services IdentityInternalService (device tokens, and the feed of tenants and ended sessions).
HTTP: the portal (`/readyz`, `/openapi.json`, `/docs`), the pages for people (`/login`, `/auth/…`),
the web console's sessions (`/api/auth/…`), and the JWKS for the gateway itself.
NATS: answers which integrators may connect, keeps their consumers, and cuts them off.
Sends `identity.*` events; receives none.
"""
