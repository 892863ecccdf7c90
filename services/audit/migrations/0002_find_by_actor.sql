-- "What did this person do" is what an audit asks most, of a log that only grows.
CREATE INDEX entry_by_actor ON audit.entry (actor, occurred_at, id);
CREATE INDEX entry_by_actor_id ON audit.entry (actor_id, occurred_at, id);
