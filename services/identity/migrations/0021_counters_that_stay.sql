-- Counters that are as many as there are accounts, and no more: whoever makes others by the hundred thousand
-- does not have them forgotten.
ALTER TABLE identity.guess ADD COLUMN kept boolean NOT NULL DEFAULT false;

-- Whether the login began with a link that was sent to the person, who needs no notice of it.
ALTER TABLE identity.login_challenge ADD COLUMN by_link boolean NOT NULL DEFAULT false;
