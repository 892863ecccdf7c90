-- What a tenant's values count for in templates above follows from the values that these name, and
-- not from any value that changes (docs/adr/0089).
ALTER TABLE policy.variable
    -- Which change of the tenant's values it was that set it last: policy.own_values.revision then.
    ADD COLUMN change bigint NOT NULL DEFAULT 1;
