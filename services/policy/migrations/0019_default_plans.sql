-- How a publish that names no plan comes to devices: JSON as in policy.rollout; empty for nothing said.
ALTER TABLE policy.setting ADD COLUMN default_plan text NOT NULL DEFAULT '';

-- How many devices a rollout with a bound was given to within the latest minute.
CREATE TABLE policy.rollout_pace (
    rollout_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    -- The minute's begin; it only moves forward.
    minute timestamptz NOT NULL,
    taken integer NOT NULL
);
CALL evergreen.isolate('policy.rollout_pace');

GRANT SELECT, INSERT, UPDATE, DELETE ON policy.rollout_pace TO evergreen_policy;

-- The release before switches an enforced gate off, and has it observe again before anybody looked: it is not
-- enforced any more.
CREATE FUNCTION policy.end_gate_that_was_off() RETURNS trigger
    LANGUAGE plpgsql AS $$
BEGIN
    UPDATE policy.gate AS g SET mode = 'OFF', held = '', changed_xid = pg_current_xact_id()
        WHERE g.tenant_id = NEW.tenant_id AND g.target_id = NEW.tenant_id AND g.mode = 'ENFORCE';
    RETURN NULL;
END $$;
CREATE TRIGGER end_gate_that_was_off AFTER UPDATE ON policy.attestation_gate FOR EACH ROW
    WHEN (OLD.mode = 'OFF' AND NEW.mode <> 'OFF')
    EXECUTE FUNCTION policy.end_gate_that_was_off();
