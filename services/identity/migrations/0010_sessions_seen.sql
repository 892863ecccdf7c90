-- Sessions show where they are from, and users when they were last here. Release 0.1.0 writes none of it.
ALTER TABLE identity.session
    ADD COLUMN user_agent text NOT NULL DEFAULT '',
    ADD COLUMN source_ip text NOT NULL DEFAULT '',
    ADD COLUMN last_seen_at timestamptz;

-- Of users who are there nothing is known: whoever is inactive is so from now on.
ALTER TABLE identity.account
    ADD COLUMN last_login_at timestamptz,
    ADD COLUMN seen_at timestamptz NOT NULL DEFAULT now();
