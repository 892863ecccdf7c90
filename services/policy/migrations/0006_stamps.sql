-- What the numbers of an organisation stand for (docs/adr/0068): each for one document, for ever.
CREATE TABLE policy.documents (
    tenant_id uuid NOT NULL,
    -- The SHA-256 of the body.
    digest bytea NOT NULL CHECK (length(digest) = 32),
    -- The exact bytes that are signed and delivered.
    body bytea NOT NULL,
    PRIMARY KEY (tenant_id, digest)
);
CALL evergreen.isolate('policy.documents');

CREATE TABLE policy.signatures (
    tenant_id uuid NOT NULL,
    digest bytea NOT NULL,
    key_id text NOT NULL,
    signature bytea NOT NULL,
    PRIMARY KEY (tenant_id, digest, key_id),
    CONSTRAINT signatures_document_exists
        FOREIGN KEY (tenant_id, digest) REFERENCES policy.documents (tenant_id, digest)
);
CALL evergreen.isolate('policy.signatures');

CREATE TABLE policy.stamps (
    id uuid NOT NULL DEFAULT gen_random_uuid(),
    tenant_id uuid NOT NULL,
    version bigint NOT NULL CHECK (version BETWEEN 1 AND 999999999999999999),
    -- Whose document it is.
    document_tenant uuid NOT NULL,
    digest bytea NOT NULL,
    key_id text NOT NULL,
    -- The statement's payload is this, the document, and a brace.
    statement_head bytea NOT NULL,
    statement_signature bytea NOT NULL,
    -- Whether a device with this number is left alone while it is to have the document. A publish moves
    -- all to its own number.
    stands boolean NOT NULL DEFAULT true,
    -- `publish` or `draw`.
    cause text NOT NULL,
    stamped_at timestamptz NOT NULL,
    changed_xid xid8 NOT NULL DEFAULT pg_current_xact_id(),
    PRIMARY KEY (tenant_id, version),
    CONSTRAINT stamps_document_exists
        FOREIGN KEY (document_tenant, digest) REFERENCES policy.documents (tenant_id, digest)
);
CREATE INDEX stamps_standing ON policy.stamps (tenant_id, document_tenant, digest, version) WHERE stands;
CREATE INDEX stamps_by_document ON policy.stamps (document_tenant, digest);
CREATE INDEX stamps_feed ON policy.stamps (changed_xid, id);
CALL evergreen.isolate('policy.stamps');

-- Whatever release publishes, its number is stamped with it.
CREATE FUNCTION policy.stamp_assignment() RETURNS trigger
    LANGUAGE plpgsql AS $$
DECLARE
    published policy.versions;
    content bytea;
BEGIN
    SELECT * INTO STRICT published FROM policy.versions AS v
        WHERE v.tenant_id = NEW.tenant_id AND v.version = NEW.version;
    content := sha256(published.document);
    INSERT INTO policy.documents (tenant_id, digest, body)
        VALUES (NEW.tenant_id, content, published.document) ON CONFLICT DO NOTHING;
    INSERT INTO policy.signatures (tenant_id, digest, key_id, signature)
        VALUES (NEW.tenant_id, content, published.key_id, published.signature) ON CONFLICT DO NOTHING;
    UPDATE policy.stamps AS s SET stands = false, changed_xid = pg_current_xact_id()
        WHERE s.tenant_id = NEW.tenant_id AND s.document_tenant = NEW.tenant_id AND s.digest = content
        AND s.stands AND s.version < NEW.version;
    INSERT INTO policy.stamps (tenant_id, version, document_tenant, digest, key_id, statement_head,
            statement_signature, cause, stamped_at)
        VALUES (NEW.tenant_id, NEW.version, NEW.tenant_id, content, published.key_id,
            substring(published.statement_payload
                FOR length(published.statement_payload) - length(published.document) - 1),
            published.statement_signature, 'publish', published.published_at)
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
CREATE TRIGGER stamp_assignment AFTER INSERT OR UPDATE OF version ON policy.assignments
    FOR EACH ROW WHEN (NEW.version IS NOT NULL) EXECUTE FUNCTION policy.stamp_assignment();

GRANT SELECT, INSERT ON policy.documents, policy.signatures TO evergreen_policy;
GRANT SELECT, INSERT, UPDATE ON policy.stamps TO evergreen_policy;
