-- The log. An entry's record is the whole event; the other columns repeat parts of it so that
-- entries can be found (libs/servicekit/auditchain.py has the format).
CREATE TABLE audit.entry (
    tenant_id uuid NOT NULL,
    sequence bigint NOT NULL CHECK (sequence > 0),
    id uuid NOT NULL,
    occurred_at timestamptz NOT NULL,
    actor text NOT NULL,
    actor_id text NOT NULL,
    action text NOT NULL,
    resource text NOT NULL,
    record text NOT NULL,
    previous_hash bytea NOT NULL CHECK (octet_length(previous_hash) = 32),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (tenant_id, sequence),
    CONSTRAINT entry_once UNIQUE (id)
);
CREATE INDEX entry_by_time ON audit.entry (occurred_at, id);
CREATE INDEX entry_by_tenant ON audit.entry (tenant_id, occurred_at, id);
CREATE INDEX entry_by_resource ON audit.entry (resource, occurred_at, id);
CALL evergreen.isolate('audit.entry');

-- The last entry of every chain. Whoever appends to a chain holds its row.
CREATE TABLE audit.chain_head (
    tenant_id uuid PRIMARY KEY,
    sequence bigint NOT NULL CHECK (sequence >= 0),
    hash bytea NOT NULL CHECK (octet_length(hash) = 32)
);
CALL evergreen.isolate('audit.chain_head');

-- The service's role is granted no more than it needs; the triggers refuse the same to everybody
-- else, also to a session that replays a replica's changes. A superuser can remove them: against
-- that stand the hashes and the checkpoints.
CREATE FUNCTION audit.refuse_change() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the audit log only grows: % on audit.% is refused', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege';
END $$;

CREATE FUNCTION audit.refuse_going_back() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    IF NEW.tenant_id <> OLD.tenant_id OR NEW.sequence <= OLD.sequence THEN
        RAISE EXCEPTION 'the audit log only grows: a chain cannot become shorter'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    RETURN NEW;
END $$;

CREATE TRIGGER only_grows BEFORE UPDATE OR DELETE OR TRUNCATE ON audit.entry
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.entry ENABLE ALWAYS TRIGGER only_grows;
CREATE TRIGGER stays BEFORE DELETE OR TRUNCATE ON audit.chain_head
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.chain_head ENABLE ALWAYS TRIGGER stays;
CREATE TRIGGER only_grows BEFORE UPDATE ON audit.chain_head
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_going_back();
ALTER TABLE audit.chain_head ENABLE ALWAYS TRIGGER only_grows;

-- Messages that are no events, with the reason, for an operator to look at.
CREATE TABLE audit.dead_letter (
    digest bytea PRIMARY KEY,
    subject text NOT NULL,
    payload bytea NOT NULL,
    reason text NOT NULL,
    received_at timestamptz NOT NULL
);

-- How much of the stream is in the log, as of the same transaction.
CREATE TABLE audit.stream_position (
    only_row boolean PRIMARY KEY DEFAULT true CHECK (only_row),
    incarnation text NOT NULL,
    sequence bigint NOT NULL
);

-- The keys that sign checkpoints; the newest signs.
CREATE TABLE audit.signing_key (
    key_id text PRIMARY KEY,
    public_key bytea NOT NULL,
    sealed_seed bytea NOT NULL,
    created_at timestamptz NOT NULL
);

CALL evergreen.add_outbox('audit');

GRANT SELECT, INSERT ON audit.entry, audit.dead_letter, audit.signing_key TO evergreen_audit;
GRANT SELECT, INSERT, UPDATE (sequence, hash) ON audit.chain_head TO evergreen_audit;
GRANT SELECT, INSERT, UPDATE ON audit.stream_position TO evergreen_audit;
