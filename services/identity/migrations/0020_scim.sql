-- SCIM 2.0 (RFC 7643, RFC 7644): sources that send people and groups by themselves. What they have in
-- common with directories and providers stands in identity.source and what hangs on it.
CREATE TABLE identity.scim_source (
    id uuid PRIMARY KEY REFERENCES identity.source (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    -- From how many users it would take access; they wait for an Owner's word.
    held integer
);
CREATE INDEX scim_source_by_tenant ON identity.scim_source (tenant_id, id);
CALL evergreen.isolate('identity.scim_source');

-- People as a source says they are. Who gets a role by a mapping has an account, whose external identity has
-- the person's id as its subject.
CREATE TABLE identity.scim_person (
    id uuid PRIMARY KEY,
    source_id uuid NOT NULL REFERENCES identity.source (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    user_name text NOT NULL,
    -- In lower case: upper and lower case are the same (RFC 7643, section 4.1.1).
    user_key text NOT NULL,
    external_id text,
    active boolean NOT NULL,
    -- What the account's address is to be; empty when there is none that can be used.
    email text NOT NULL,
    attributes jsonb NOT NULL,
    -- Why the person has no account that can be used; empty when there is one.
    problem text NOT NULL DEFAULT '',
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    -- Since when the source has the person no more; the account that is left is found again by this row.
    deleted_at timestamptz
);
-- Somebody else may have the name of one whom the source has no more.
CREATE UNIQUE INDEX scim_user_name_taken ON identity.scim_person (source_id, user_key) WHERE deleted_at IS NULL;
CREATE INDEX scim_person_by_name ON identity.scim_person (source_id, user_key);
CREATE INDEX scim_person_by_problem ON identity.scim_person (source_id, problem) WHERE problem <> '';
CREATE INDEX scim_person_gone ON identity.scim_person (source_id) WHERE deleted_at IS NOT NULL;
CREATE INDEX scim_person_by_id ON identity.scim_person (source_id, id);
CREATE INDEX scim_person_by_external_id ON identity.scim_person (source_id, external_id);
CREATE INDEX scim_person_by_email ON identity.scim_person (source_id, email);
CREATE INDEX scim_person_by_tenant ON identity.scim_person (tenant_id);
CALL evergreen.isolate('identity.scim_person');

CREATE TABLE identity.scim_group (
    id uuid PRIMARY KEY,
    source_id uuid NOT NULL REFERENCES identity.source (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    display_name text NOT NULL,
    name_key text NOT NULL,
    external_id text,
    created_at timestamptz NOT NULL,
    updated_at timestamptz NOT NULL,
    CONSTRAINT scim_group_name_taken UNIQUE (source_id, name_key),
    CONSTRAINT scim_group_external_id_taken UNIQUE (source_id, external_id)
);
CREATE INDEX scim_group_by_id ON identity.scim_group (source_id, id);
CREATE INDEX scim_group_by_tenant ON identity.scim_group (tenant_id);
CALL evergreen.isolate('identity.scim_group');

CREATE TABLE identity.scim_member (
    group_id uuid NOT NULL REFERENCES identity.scim_group (id) ON DELETE CASCADE,
    person_id uuid NOT NULL REFERENCES identity.scim_person (id) ON DELETE CASCADE,
    tenant_id uuid NOT NULL,
    PRIMARY KEY (group_id, person_id)
);
CREATE INDEX scim_member_by_person ON identity.scim_member (person_id);
CREATE INDEX scim_member_by_tenant ON identity.scim_member (tenant_id);
CALL evergreen.isolate('identity.scim_member');

-- Tokens of sources stand among the API tokens, and open nothing but `/scim/v2`.
ALTER TABLE identity.api_token ADD COLUMN source_id uuid;
-- A moment: no token has a source yet.
-- squawk-ignore require-concurrent-index-creation
CREATE INDEX api_token_by_source ON identity.api_token (source_id) WHERE source_id IS NOT NULL;

GRANT SELECT, INSERT, UPDATE, DELETE ON identity.scim_source, identity.scim_person, identity.scim_group,
    identity.scim_member TO evergreen_identity;
