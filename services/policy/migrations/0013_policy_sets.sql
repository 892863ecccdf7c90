-- Which policies belong to sets that are kept as code (docs/adr/0074). A policy of the release before belongs
-- to none.
CREATE TABLE policy.set_member (
    policy_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    -- Names the policy in its tenant.
    alias text NOT NULL,
    set_name text NOT NULL,
    -- The policy's, when the set was applied: another one says that somebody changed it since.
    revision bigint NOT NULL,
    CONSTRAINT set_member_alias UNIQUE (tenant_id, alias),
    CONSTRAINT set_member_policy_exists
        FOREIGN KEY (policy_id) REFERENCES policy.policies (id) ON DELETE CASCADE
);
CALL evergreen.isolate('policy.set_member');

GRANT SELECT, INSERT, UPDATE, DELETE ON policy.set_member TO evergreen_policy;
