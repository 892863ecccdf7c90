"""Identity: tenants, users, sessions, and the keys that sign tokens.

RPCs: AuthService, TenantService, UserService, TokenKeyService; for the other services
IdentityInternalService (device tokens, and the feed of tenants and ended sessions).
HTTP: the portal (`/readyz`, `/openapi.json`, `/docs`), and the JWKS for the gateway itself.
Sends `identity.*` events; receives none.
"""
