-- What is known of a deleted device goes.
GRANT DELETE ON policy.devices, policy.applied_versions, policy.device_syncs TO evergreen_policy;

SELECT set_config('evergreen.scope', '*', true);
UPDATE policy.device_access AS a SET tenant_id = d.tenant_id
    FROM policy.devices AS d WHERE d.device_id = a.device_id;
