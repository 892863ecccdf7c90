CREATE TABLE identity.event_credential (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES identity.tenant (id),
    name text NOT NULL,
    secret_hash bytea NOT NULL,
    created_at timestamptz NOT NULL,
    created_by text NOT NULL,
    expires_at timestamptz,
    revoked_at timestamptz,
    last_used_at timestamptz
);
CREATE INDEX event_credential_by_tenant ON identity.event_credential (tenant_id, id);
CALL evergreen.isolate('identity.event_credential');

GRANT SELECT, INSERT, UPDATE ON identity.event_credential TO evergreen_identity;
