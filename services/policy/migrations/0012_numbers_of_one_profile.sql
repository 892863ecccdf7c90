-- Where tenants above say secrets, a number that two sets of policies shared would tell that they make the
-- same document, and so whether a secret was guessed (docs/adr/0069).
ALTER TABLE policy.profiles
    -- Whether its numbers are its own.
    ADD COLUMN apart boolean NOT NULL DEFAULT false;
ALTER TABLE policy.stamps
    -- The profile for which alone the number stands; NULL for all that are to have its document.
    ADD COLUMN profile uuid;
