-- Policies of tenants above an organisation, and what an organisation's devices are to have of all of
-- them (docs/adr/0069).
ALTER TABLE policy.policies
    -- JSON: what the policy does with the layers around it; NULL for nothing.
    ADD COLUMN merging text;
ALTER TABLE policy.versions
    -- JSON: what the version sets by itself, of which `document` is made with the layers above. NULL where
    -- the last release published: `document` is that alone.
    ADD COLUMN layer text,
    -- Whether `document` has something of layers above.
    ADD COLUMN inherits boolean NOT NULL DEFAULT false;

CREATE TABLE policy.editions (
    tenant_id uuid PRIMARY KEY,
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    -- JSON: of which versions it is made, the root's first.
    recipe text NOT NULL,
    -- The organisation's own version among them; another one in force means that the edition is out of date.
    own_version bigint,
    -- NULL where the document of the organisation's own version is all.
    document_tenant uuid,
    digest bytea,
    -- Why the layers could not be put together, and devices keep what they had.
    problem text NOT NULL DEFAULT '',
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    CONSTRAINT editions_document_exists
        FOREIGN KEY (document_tenant, digest) REFERENCES policy.documents (tenant_id, digest)
);
CREATE INDEX editions_feed ON policy.editions (changed_xid, id);
CREATE INDEX editions_by_document ON policy.editions (document_tenant, digest);
CALL evergreen.isolate('policy.editions');

GRANT SELECT, INSERT, UPDATE ON policy.editions TO evergreen_policy;
