-- Which groups belong to sets that are kept as code (docs/adr/0074). A group of the release before belongs
-- to none.
CREATE TABLE enrollment.group_set_member (
    group_id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    set_name text NOT NULL
);
CREATE INDEX group_set_member_by_tenant ON enrollment.group_set_member (tenant_id, set_name);
CALL evergreen.isolate('enrollment.group_set_member');

GRANT SELECT, INSERT, UPDATE, DELETE ON enrollment.group_set_member TO evergreen_enrollment;
