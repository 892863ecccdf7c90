-- What is in force is stamped, by the trigger.
SELECT set_config('evergreen.scope', '*', true);
UPDATE policy.assignments SET version = version WHERE version IS NOT NULL;
