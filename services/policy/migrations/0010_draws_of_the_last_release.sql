-- Of the release before, which knows no layers, while both run (docs/adr/0069).

-- Whether what was made for a tenant has something of tenants above: the recipe names the root first.
CREATE FUNCTION policy.has_layers_above(recipe text, whose uuid) RETURNS boolean
    LANGUAGE sql IMMUTABLE AS $$
    SELECT NOT (recipe = '[]' OR recipe LIKE '[["' || whose || '"%')
$$;

ALTER TABLE policy.stamps
    -- Whether a release that knows layers gave the number out.
    ADD COLUMN knows_layers boolean NOT NULL DEFAULT false;

-- The release before would draw a number for the organisation's own policy, without what is above it, where
-- a device has the document of all layers; and the two releases would draw against each other. Its
-- devices keep what they have. The error is one after which it does so.
CREATE FUNCTION policy.refuse_draw() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM policy.bindings AS b WHERE b.tenant_id = NEW.tenant_id AND b.version IS NOT NULL)
        OR EXISTS (SELECT FROM policy.editions AS e
            LEFT JOIN policy.assignments AS a ON a.tenant_id = e.tenant_id
            WHERE e.tenant_id = NEW.tenant_id AND CASE
                WHEN e.own_version IS DISTINCT FROM a.version
                    THEN policy.has_layers_above(e.recipe, e.tenant_id)
                ELSE e.digest IS NOT NULL
                    AND (e.document_tenant, e.digest) <> (NEW.document_tenant, NEW.digest)
            END)
    THEN
        RAISE EXCEPTION 'devices of % are to have what layers make', NEW.tenant_id
            USING ERRCODE = 'lock_not_available';
    END IF;
    RETURN NEW;
END $$;
-- Not of a restore, which another role does.
CREATE TRIGGER refuse_draw BEFORE INSERT ON policy.stamps FOR EACH ROW
    WHEN (NEW.cause = 'draw' AND NOT NEW.knows_layers AND current_user = 'evergreen_policy')
    EXECUTE FUNCTION policy.refuse_draw();
