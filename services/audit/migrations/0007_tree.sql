-- One tree over the entries of all tenants (libs/auditlog/tree.py; docs/adr/0066). Whoever appends to
-- a chain does nothing for it: the tree takes in what was committed, chain by chain.

-- The logs whose trees there were: the newest one grows. After a restore there is another one, for a
-- tree that was signed cannot become shorter.
CREATE TABLE audit.tree_log (
    number integer PRIMARY KEY CHECK (number > 0),
    -- What its checkpoints are named by.
    origin text NOT NULL UNIQUE,
    -- The text of the last checkpoint of the log before; its digest is in leaf 0. Empty for none.
    before text NOT NULL,
    size bigint NOT NULL CHECK (size >= 0),
    root bytea NOT NULL CHECK (octet_length(root) = 32),
    began_at timestamptz NOT NULL
);

-- The data of leaves: hashes of entries. Leaf 0 of a log behind another one is no tenant's.
CREATE TABLE audit.tree_leaf (
    log integer NOT NULL,
    index bigint NOT NULL CHECK (index >= 0),
    tenant_id uuid,
    sequence bigint,
    data bytea NOT NULL CHECK (octet_length(data) = 32),
    PRIMARY KEY (log, index),
    UNIQUE (log, tenant_id, sequence)
);
CALL evergreen.isolate('audit.tree_leaf');

-- Roots of complete subtrees of 256, 65,536, … leaves: level 1, 2, …
CREATE TABLE audit.tree_node (
    log integer NOT NULL,
    level integer NOT NULL CHECK (level > 0),
    index bigint NOT NULL CHECK (index >= 0),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (log, level, index)
);

-- Up to which entry of a chain the tree has it.
CREATE TABLE audit.tree_cursor (
    log integer NOT NULL,
    tenant_id uuid NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    PRIMARY KEY (log, tenant_id)
);
CALL evergreen.isolate('audit.tree_cursor');

CREATE FUNCTION audit.refuse_smaller_tree() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.size < OLD.size OR (NEW.number, NEW.origin, NEW.before, NEW.began_at)
        IS DISTINCT FROM (OLD.number, OLD.origin, OLD.before, OLD.began_at) THEN
        RAISE EXCEPTION 'the audit log only grows: its tree cannot become smaller'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.tree_leaf
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.tree_leaf ENABLE ALWAYS TRIGGER only_grows;
CREATE TRIGGER only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.tree_node
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.tree_node ENABLE ALWAYS TRIGGER only_grows;
CREATE TRIGGER stays BEFORE DELETE OR TRUNCATE ON audit.tree_log
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.tree_log ENABLE ALWAYS TRIGGER stays;
CREATE TRIGGER only_grows BEFORE UPDATE ON audit.tree_log
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_smaller_tree();
ALTER TABLE audit.tree_log ENABLE ALWAYS TRIGGER only_grows;

GRANT SELECT, INSERT ON audit.tree_leaf, audit.tree_node TO evergreen_audit;
GRANT SELECT, INSERT, UPDATE (size, root) ON audit.tree_log TO evergreen_audit;
GRANT SELECT, INSERT, UPDATE (sequence) ON audit.tree_cursor TO evergreen_audit;

-- Entries of format v2 have one; the releases before write none.
ALTER TABLE audit.entry ADD COLUMN salt bytea;
ALTER TABLE audit.entry ADD CONSTRAINT entry_salt CHECK (octet_length(salt) = 16) NOT VALID;

-- When a forwarder was sent a checkpoint of the tree.
ALTER TABLE audit.forwarder_state ADD COLUMN checkpoint_at timestamptz;
