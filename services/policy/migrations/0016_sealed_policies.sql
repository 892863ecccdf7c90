-- Policies and documents that hold secrets may lie sealed (docs/adr/0081): what is sealed is missing in the
-- other columns. The release before cannot read such rows, and none are made before it runs no more.
ALTER TABLE policy.policies
    -- `authored` and `form_extra`; those are empty then.
    ADD COLUMN sealed_secrets bytea;
ALTER TABLE policy.versions
    -- `authored`, `form_extra`, `layer` and `document`; `statement_payload` ends before the document then.
    ADD COLUMN sealed_secrets bytea,
    -- The SHA-256 of a sealed document.
    ADD COLUMN document_digest bytea CHECK (length(document_digest) = 32);
ALTER TABLE policy.documents
    -- `body`.
    ADD COLUMN sealed_secrets bytea;

-- A sealed document is stored before its version comes into force.
CREATE OR REPLACE FUNCTION policy.stamp_assignment() RETURNS trigger
    LANGUAGE plpgsql AS $$
DECLARE
    published policy.versions;
    content bytea;
    head bytea;
BEGIN
    SELECT * INTO STRICT published FROM policy.versions AS v
        WHERE v.tenant_id = NEW.tenant_id AND v.version = NEW.version;
    content := published.document_digest;
    head := published.statement_payload;
    IF content IS NULL THEN
        content := sha256(published.document);
        head := substring(head FOR length(head) - length(published.document) - 1);
        INSERT INTO policy.documents (tenant_id, digest, body)
            VALUES (NEW.tenant_id, content, published.document) ON CONFLICT DO NOTHING;
    END IF;
    INSERT INTO policy.signatures (tenant_id, digest, key_id, signature)
        VALUES (NEW.tenant_id, content, published.key_id, published.signature) ON CONFLICT DO NOTHING;
    UPDATE policy.stamps AS s SET stands = false, changed_xid = pg_current_xact_id()
        WHERE s.tenant_id = NEW.tenant_id AND s.document_tenant = NEW.tenant_id AND s.digest = content
        AND s.stands AND s.version < NEW.version;
    INSERT INTO policy.stamps (tenant_id, version, document_tenant, digest, key_id, statement_head,
            statement_signature, cause, stamped_at)
        VALUES (NEW.tenant_id, NEW.version, NEW.tenant_id, content, published.key_id, head,
            published.statement_signature, 'publish', published.published_at)
        ON CONFLICT DO NOTHING;
    RETURN NULL;
END $$;
