-- What people look for inside records: the name of what was changed, and the words that name a call.
-- A record that somebody damaged, or that is gone, has none; it stops neither an index nor a list.
CREATE FUNCTION audit.entry_name(record text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
BEGIN
    RETURN left(lower(record::jsonb #>> '{data,resourceName}'), 254) COLLATE "C";
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;

CREATE FUNCTION audit.entry_words(record text) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE AS $$
DECLARE
    data jsonb;
BEGIN
    data := record::jsonb -> 'data';
    RETURN array_remove(ARRAY[
        'kind:' || left(data ->> 'actorKind', 64),
        'outcome:' || left(data ->> 'outcome', 64),
        'ip:' || lower(left(data ->> 'sourceIp', 64)),
        'request:' || left(data ->> 'requestId', 128)
    ], NULL);
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;
