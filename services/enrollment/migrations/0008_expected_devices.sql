-- What an enrollment token gives to its devices, and devices that are expected before they enroll.
ALTER TABLE enrollment.token
    ADD COLUMN labels jsonb NOT NULL DEFAULT '{}',
    ADD COLUMN group_ids uuid[] NOT NULL DEFAULT '{}',
    -- It admits expected devices alone. Its serial_count is then 1 without a serial number on its list: the
    -- last release's services, which know nothing of this, admit nobody by it.
    ADD COLUMN only_expected boolean NOT NULL DEFAULT false;

-- In a table of their own: they have no identity yet, and nobody but administrators hears of them. The row
-- goes when the device enrolls, which keeps its id.
CREATE TABLE enrollment.expected_device (
    id uuid PRIMARY KEY,
    tenant_id uuid NOT NULL,
    serial text NOT NULL,
    serial_key text COLLATE "C" NOT NULL,
    model text NOT NULL,
    labels jsonb NOT NULL,
    asset_tag text NOT NULL,
    note text NOT NULL,
    created_at timestamptz NOT NULL,
    CONSTRAINT expected_serial UNIQUE (serial_key, tenant_id)
);
CREATE INDEX expected_by_tenant ON enrollment.expected_device (tenant_id, id);
CALL evergreen.isolate('enrollment.expected_device');
GRANT SELECT, INSERT, UPDATE, DELETE ON enrollment.expected_device TO evergreen_enrollment;
