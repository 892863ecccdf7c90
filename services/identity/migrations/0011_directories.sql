-- Accounts that come from elsewhere: directories (LDAP), and later single sign-on and SCIM. What they have
-- in common hangs on `source`: whose addresses it answers for, who it knows, and what its groups may do.
CREATE TABLE identity.source (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL REFERENCES identity.tenant (id),
    kind text NOT NULL CHECK (kind IN ('directory', 'sso', 'scim')),
    name text NOT NULL,
    enabled boolean NOT NULL,
    -- How long its users stay logged in after it last confirmed them.
    grace_hours integer NOT NULL,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL
);
CREATE INDEX source_by_tenant ON identity.source (tenant_id, id);
CALL evergreen.isolate('identity.source');

CREATE TABLE identity.directory (
    id uuid PRIMARY KEY REFERENCES identity.source (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    kind text NOT NULL CHECK (kind IN ('ad', 'openldap', 'custom')),
    urls text[] NOT NULL,
    tls text NOT NULL CHECK (tls IN ('ldaps', 'starttls')),
    ca_pem text NOT NULL,
    bind_dn text NOT NULL,
    sealed_secrets bytea NOT NULL,
    base_dn text NOT NULL,
    user_filter text NOT NULL,
    id_attribute text NOT NULL,
    email_attribute text NOT NULL,
    name_attribute text NOT NULL,
    group_base_dn text NOT NULL,
    group_mode text NOT NULL CHECK (group_mode IN ('in-chain', 'walk', 'none')),
    sync_minutes integer NOT NULL,
    -- When the last sync ended, what came of it, and what it waits for an Owner's word with.
    synced_at timestamptz,
    sync_status text NOT NULL DEFAULT '',
    sync_error text NOT NULL DEFAULT '',
    sync_held integer,
    sync_next_at timestamptz NOT NULL
);
CREATE INDEX directory_next_sync ON identity.directory (sync_next_at);
CALL evergreen.isolate('identity.directory');

-- Whose addresses a domain has: unique in the installation, and given by the Owner of the tenant above.
CREATE TABLE identity.email_domain (
    domain text CONSTRAINT email_domain_taken PRIMARY KEY CHECK (domain = lower(domain)),
    tenant_id uuid NOT NULL REFERENCES identity.tenant (id),
    source_id uuid REFERENCES identity.source (id) ON DELETE SET NULL,
    assigned_by text NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX email_domain_by_tenant ON identity.email_domain (tenant_id, domain);
CREATE INDEX email_domain_by_source ON identity.email_domain (source_id);
CALL evergreen.isolate('identity.email_domain');

-- The first row whose group a person is in decides the tenant, the highest role among that tenant's rows
-- the role. `tenant_id` is where the row leads.
CREATE TABLE identity.role_mapping (
    source_id uuid NOT NULL REFERENCES identity.source (id) ON DELETE CASCADE,
    position integer NOT NULL,
    external_group text NOT NULL,
    role text NOT NULL CHECK (role IN ('Owner', 'Admin', 'Auditor')),
    tenant_id uuid NOT NULL REFERENCES identity.tenant (id),
    PRIMARY KEY (source_id, position)
);
CREATE INDEX role_mapping_by_tenant ON identity.role_mapping (tenant_id);
CALL evergreen.isolate('identity.role_mapping');

-- Whom a source knows, by the source's own unchanging id.
CREATE TABLE identity.external_identity (
    source_id uuid NOT NULL REFERENCES identity.source (id) ON DELETE CASCADE,
    subject text NOT NULL,
    account_id uuid NOT NULL REFERENCES identity.account (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    email_seen text NOT NULL,
    groups_seen text[] NOT NULL,
    last_login_at timestamptz,
    -- When the source last confirmed the person, and since when it knows the person no longer.
    seen_at timestamptz NOT NULL,
    missing_since timestamptz,
    PRIMARY KEY (source_id, subject),
    CONSTRAINT external_identity_once UNIQUE (source_id, account_id)
);
CREATE INDEX external_identity_by_account ON identity.external_identity (account_id);
CREATE INDEX external_identity_by_tenant ON identity.external_identity (tenant_id);
CALL evergreen.isolate('identity.external_identity');

ALTER TABLE identity.account
    ADD COLUMN origin text NOT NULL DEFAULT 'local',
    -- Who disabled it: what an admin disabled, no source enables.
    ADD COLUMN disabled_by text;

GRANT SELECT, INSERT, UPDATE, DELETE ON identity.source, identity.directory, identity.email_domain,
    identity.role_mapping, identity.external_identity TO evergreen_identity;
