-- outside a transaction
DROP INDEX CONCURRENTLY IF EXISTS audit.entry_by_name;
CREATE INDEX CONCURRENTLY IF NOT EXISTS entry_by_name
    ON audit.entry (audit.entry_name(record) COLLATE "C");
DROP INDEX CONCURRENTLY IF EXISTS audit.entry_by_word;
CREATE INDEX CONCURRENTLY IF NOT EXISTS entry_by_word
    ON audit.entry USING gin (audit.entry_words(record));
DROP INDEX CONCURRENTLY IF EXISTS audit.entry_by_actors_begin;
CREATE INDEX CONCURRENTLY IF NOT EXISTS entry_by_actors_begin
    ON audit.entry (lower(actor) COLLATE "C");
DROP INDEX CONCURRENTLY IF EXISTS audit.entry_by_resources_begin;
CREATE INDEX CONCURRENTLY IF NOT EXISTS entry_by_resources_begin
    ON audit.entry (lower(resource) COLLATE "C");
