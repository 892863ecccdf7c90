-- What the console's form holds beyond what the last release knows of it: its signature, and the
-- passphrases of its networks. JSON; the rest stays in `authored`, as that release reads it.
ALTER TABLE policy.policies ADD COLUMN form_extra text;
ALTER TABLE policy.versions ADD COLUMN form_extra text;
