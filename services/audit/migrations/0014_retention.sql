-- For how long a tenant's log is kept, and whether a legal hold keeps all of it. `chain_id` is the tenant: when it
-- is deleted its log stays, and so do these (docs/adr/0086).
CREATE TABLE audit.retention (
    chain_id uuid PRIMARY KEY,
    -- Why nothing may be pruned or redacted; NULL for no hold.
    hold_reason text,
    -- The tenant of who set it: nobody below may release it.
    held_from uuid,
    held_by text,
    held_at timestamptz,
    revision bigint NOT NULL,
    updated_at timestamptz NOT NULL,
    updated_by text NOT NULL,
    CHECK ((hold_reason IS NULL) = (held_from IS NULL))
);
CALL evergreen.isolate('audit.retention', 'chain_id');
GRANT SELECT, INSERT, UPDATE ON audit.retention TO evergreen_audit;

-- For how many years, by each tenant that says it of a log: the log's own, and those above it. Nobody below shortens
-- what one of them says. In force is the longest, of the tenant's log and of those above it.
CREATE TABLE audit.retention_years (
    chain_id uuid NOT NULL REFERENCES audit.retention,
    said_from uuid NOT NULL,
    -- 0 for ever.
    keep_years integer NOT NULL CHECK (keep_years BETWEEN 0 AND 30),
    PRIMARY KEY (chain_id, said_from)
);
CALL evergreen.isolate('audit.retention_years', 'chain_id');
GRANT SELECT, INSERT, DELETE ON audit.retention_years TO evergreen_audit;

-- Up to which entry a chain was pruned. An entry of the chain says so (audit.pruned).
CREATE TABLE audit.chain_base (
    chain_id uuid PRIMARY KEY,
    sequence bigint NOT NULL CHECK (sequence > 0),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    -- Where the pruning ends; the same, unless it was cut short.
    until_sequence bigint NOT NULL CHECK (until_sequence >= sequence),
    until_hash bytea NOT NULL CHECK (octet_length(until_hash) = 32),
    archive_sha256 bytea NOT NULL CHECK (octet_length(archive_sha256) = 32),
    pruned_at timestamptz NOT NULL,
    -- When the latest of those that are gone happened: what is asked about a time before it is without them.
    last_occurred_at timestamptz NOT NULL
);
CALL evergreen.isolate('audit.chain_base', 'chain_id');
GRANT SELECT ON audit.chain_base TO evergreen_audit;
CREATE TRIGGER stays BEFORE DELETE OR TRUNCATE ON audit.chain_base
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.chain_base ENABLE ALWAYS TRIGGER stays;

CREATE FUNCTION audit.refuse_lower_base() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.chain_id <> OLD.chain_id OR NEW.sequence <= OLD.sequence THEN
        RAISE EXCEPTION 'the audit log only grows: what was pruned does not come back'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER only_grows BEFORE UPDATE ON audit.chain_base
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_lower_base();
ALTER TABLE audit.chain_base ENABLE ALWAYS TRIGGER only_grows;

-- Lets an entry go only below its chain's base, in a transaction that has announced to prune just this chain.
CREATE FUNCTION audit.refuse_other_deletion() RETURNS trigger
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('evergreen.prunes', true) IS DISTINCT FROM OLD.tenant_id::text
        OR NOT EXISTS (
            SELECT FROM audit.chain_base WHERE chain_id = OLD.tenant_id AND sequence >= OLD.sequence)
    THEN
        RAISE EXCEPTION 'the audit log only grows: % on audit.% is refused', TG_OP, TG_TABLE_NAME
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN OLD;
END $$;

DROP TRIGGER only_grows ON audit.entry;
CREATE TRIGGER only_grows BEFORE TRUNCATE ON audit.entry
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.entry ENABLE ALWAYS TRIGGER only_grows;
CREATE TRIGGER only_pruned BEFORE DELETE ON audit.entry
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_other_deletion();
ALTER TABLE audit.entry ENABLE ALWAYS TRIGGER only_pruned;

-- Takes out the next entries of a chain, which an archive has. Of the role that owns the tables alone: the service
-- may not call it. Sees all rows only in a transaction that does. Every rule is checked here, too, by the rows as
-- they are now; the messages begin with a word for the caller.
CREATE FUNCTION audit.prune(
    -- The chain's tenant, behind all above it, the root first.
    line uuid[],
    -- The entries: all behind the base, without a gap. `blanks`: which of them the archive has without content.
    sequences bigint[], hashes bytea[], blanks boolean[],
    -- Where the pruning ends, and the SHA-256 of the archived file.
    last_sequence bigint, last_hash bytea, archive bytea
) RETURNS bigint
    LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    chain uuid := line[cardinality(line)];
    base bigint;
    top bigint := sequences[cardinality(sequences)];
    years integer;
    latest timestamptz;
    gone bigint;
BEGIN
    -- A rule or a hold that somebody is told of holds: it waits for the batch, or the batch for it.
    LOCK TABLE audit.retention, audit.retention_years IN SHARE MODE;
    SELECT b.sequence INTO base FROM audit.chain_base b WHERE b.chain_id = chain FOR UPDATE;
    base := coalesce(base, 0);
    IF sequences[1] IS DISTINCT FROM base + 1 OR top - base <> cardinality(sequences) OR top > last_sequence THEN
        RAISE EXCEPTION 'MOVED: the chain begins behind entry %', base;
    END IF;
    IF top = last_sequence AND hashes[cardinality(hashes)] IS DISTINCT FROM last_hash THEN
        RAISE EXCEPTION 'DIFFERS: entry % has another hash than the pruning ends with', top;
    END IF;
    PERFORM FROM audit.retention WHERE chain_id = ANY (line) AND hold_reason IS NOT NULL;
    IF FOUND THEN
        RAISE EXCEPTION 'HELD: a legal hold keeps the chain';
    END IF;
    -- The root has to say for how long; the longest counts, and 0 is for ever.
    SELECT CASE WHEN bool_or(keep_years = 0) THEN 0 ELSE max(keep_years) END INTO years
        FROM audit.retention_years WHERE chain_id = ANY (line);
    IF coalesce(years, 0) = 0
        OR NOT EXISTS (SELECT FROM audit.retention_years WHERE chain_id = line[1])
    THEN
        RAISE EXCEPTION 'KEPT: the chain is kept for ever';
    END IF;
    IF top > coalesce((SELECT h.sequence - 1000 FROM audit.chain_head h WHERE h.tenant_id = chain), 0) THEN
        RAISE EXCEPTION 'NEWEST: the last 1,000 entries of a chain stay';
    END IF;
    IF top > coalesce((
        SELECT c.sequence FROM audit.tree_cursor c
        WHERE c.tenant_id = chain AND c.log = (SELECT max(number) FROM audit.tree_log)), 0)
    THEN
        RAISE EXCEPTION 'TREE: the tree has the chain not so far yet';
    END IF;
    IF EXISTS (
        SELECT FROM audit.forwarder f
        LEFT JOIN audit.forwarder_position p ON p.forwarder_id = f.id AND p.chain_id = chain
        WHERE f.enabled AND (f.tenant_id = chain OR f.below_too AND f.tenant_id = ANY (line))
        AND (coalesce(p.sequence, 0) < top OR EXISTS (
            SELECT FROM audit.forwarder_quarantine q WHERE q.forwarder_id = f.id AND q.chain_id = chain
            AND q.sequence BETWEEN base + 1 AND top AND q.delivered_at IS NULL)))
    THEN
        RAISE EXCEPTION 'FORWARDER: an enabled forwarder has not delivered all of them';
    END IF;
    -- What is missing here is refused below.
    SELECT coalesce(max(e.occurred_at), '-infinity') INTO latest FROM audit.entry e
        WHERE e.tenant_id = chain AND e.sequence BETWEEN base + 1 AND top;
    INSERT INTO audit.chain_base AS b
        (chain_id, sequence, hash, until_sequence, until_hash, archive_sha256, pruned_at, last_occurred_at)
        VALUES (chain, top, hashes[cardinality(hashes)], last_sequence, last_hash, archive, now(), latest)
        ON CONFLICT (chain_id) DO UPDATE SET sequence = excluded.sequence, hash = excluded.hash,
        until_sequence = excluded.until_sequence, until_hash = excluded.until_hash,
        archive_sha256 = excluded.archive_sha256, pruned_at = excluded.pruned_at,
        last_occurred_at = greatest(b.last_occurred_at, excluded.last_occurred_at);
    PERFORM set_config('evergreen.prunes', chain::text, true);
    DELETE FROM audit.entry e USING unnest(sequences, hashes, blanks) AS u (sequence, hash, blank)
        WHERE e.tenant_id = chain AND e.sequence = u.sequence AND e.hash = u.hash AND e.redacted = u.blank
        AND e.occurred_at < now() - make_interval(years => years);
    GET DIAGNOSTICS gone = ROW_COUNT;
    PERFORM set_config('evergreen.prunes', '', true);
    IF gone <> cardinality(sequences) THEN
        RAISE EXCEPTION 'DIFFERS: % of % entries are younger, or not those of the archive',
            cardinality(sequences) - gone, cardinality(sequences);
    END IF;
    RETURN gone;
END $$;
REVOKE ALL ON FUNCTION audit.prune FROM PUBLIC;

-- As before, and what else an entry concerns. Entries of before say nothing of it, so that the index fits.
CREATE OR REPLACE FUNCTION audit.entry_words(record text) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    data jsonb;
    related text[] := '{}';
BEGIN
    data := record::jsonb -> 'data';
    IF jsonb_typeof(data -> 'related') = 'array' THEN
        related := ARRAY(SELECT 'related:' || left(one, 256)
            FROM jsonb_array_elements_text(data -> 'related') WITH ORDINALITY AS r (one, n) WHERE n <= 2000);
    END IF;
    RETURN related || array_remove(ARRAY[
        'kind:' || left(data ->> 'actorKind', 64),
        'outcome:' || left(data ->> 'outcome', 64),
        'ip:' || lower(left(data ->> 'sourceIp', 64)),
        'request:' || left(data ->> 'requestId', 128)
    ], NULL);
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;
