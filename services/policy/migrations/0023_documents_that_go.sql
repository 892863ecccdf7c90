-- Documents that no device has or is to have go after a while (docs/adr/0090). Their numbers stay: each
-- stands for its document for ever, which it names by its digest.
ALTER TABLE policy.documents
    -- Since when nothing needs it; NULL while something does, as far as was looked.
    ADD COLUMN unused_since timestamptz;
-- Releases store a document before its number, and read what is not there as a number without a document.
-- squawk-ignore ban-drop-constraint
ALTER TABLE policy.stamps DROP CONSTRAINT stamps_document_exists;
GRANT UPDATE (unused_since), DELETE ON policy.documents TO evergreen_policy;
GRANT DELETE ON policy.signatures TO evergreen_policy;

-- A document that is there stays until the transaction ends.
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
        LOOP
            INSERT INTO policy.documents (tenant_id, digest, body)
                VALUES (NEW.tenant_id, content, published.document) ON CONFLICT DO NOTHING;
            -- One that was there may be on its way out.
            PERFORM FROM policy.documents AS d
                WHERE d.tenant_id = NEW.tenant_id AND d.digest = content FOR KEY SHARE;
            EXIT WHEN FOUND;
        END LOOP;
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
