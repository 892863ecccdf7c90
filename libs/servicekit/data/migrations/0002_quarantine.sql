-- Rows that a service could not handle: which ones, where, and why. Never what is in them; the rows
-- themselves stay where they are.
CREATE PROCEDURE evergreen.add_quarantine(context name)
    LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE %I.quarantined_row ('
        ' place text NOT NULL,'
        ' key text NOT NULL,'
        ' reason text NOT NULL,'
        ' first_seen timestamptz NOT NULL DEFAULT now(),'
        ' last_seen timestamptz NOT NULL DEFAULT now(),'
        ' times bigint NOT NULL DEFAULT 1,'
        ' PRIMARY KEY (place, key))', context);
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE, DELETE ON %I.quarantined_row TO %I',
        context, 'evergreen_' || context);
END $$;

-- As before, with the time since when the relay leaves out an event that nobody can publish.
CREATE OR REPLACE PROCEDURE evergreen.add_outbox(context name)
    LANGUAGE plpgsql AS $$
BEGIN
    EXECUTE format(
        'CREATE TABLE %I.outbox ('
        ' id uuid PRIMARY KEY,'
        ' subject text NOT NULL,'
        ' payload text NOT NULL,'
        ' created_at timestamptz NOT NULL DEFAULT now(),'
        ' published_at timestamptz,'
        ' quarantined_at timestamptz)', context);
    EXECUTE format(
        'CREATE INDEX outbox_unpublished ON %I.outbox (id) WHERE published_at IS NULL', context);
    EXECUTE format(
        'CREATE INDEX outbox_published ON %I.outbox (published_at)'
        ' WHERE published_at IS NOT NULL', context);
    EXECUTE format(
        'CREATE TABLE %I.outbox_stream ('
        ' only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),'
        ' incarnation text NOT NULL)', context);
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE (published_at, quarantined_at), DELETE ON %I.outbox TO %I',
        context, 'evergreen_' || context);
    EXECUTE format(
        'GRANT SELECT, INSERT, UPDATE ON %I.outbox_stream TO %I',
        context, 'evergreen_' || context);
END $$;

-- The contexts' schemas are there before all migrations; their outboxes only where there was a release
-- before this one.
DO $$
DECLARE
    context name;
BEGIN
    FOR context IN
        SELECT nspname FROM pg_namespace
        WHERE to_regrole('evergreen_' || nspname) IS NOT NULL ORDER BY nspname
    LOOP
        CALL evergreen.add_quarantine(context);
        IF to_regclass(format('%I.outbox', context)) IS NOT NULL THEN
            EXECUTE format('ALTER TABLE %I.outbox ADD COLUMN quarantined_at timestamptz', context);
            EXECUTE format(
                'GRANT UPDATE (quarantined_at) ON %I.outbox TO %I',
                context, 'evergreen_' || context);
        END IF;
    END LOOP;
END $$;
