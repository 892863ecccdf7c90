-- Ends the API tokens of a user that work, of whatever tenants, and answers them.
CREATE FUNCTION identity.end_api_tokens_of(account uuid) RETURNS SETOF identity.api_token
    LANGUAGE plpgsql AS $$
DECLARE
    scope text := coalesce(current_setting('evergreen.scope', true), '');
BEGIN
    PERFORM set_config('evergreen.scope', '*', true);
    RETURN QUERY UPDATE identity.api_token t SET ends_at = now(), ended_because = 'holder',
        changed_xid = pg_current_xact_id()
        WHERE t.account_id = account AND t.ends_at > now() RETURNING t.*;
    PERFORM set_config('evergreen.scope', scope, true);
END $$;
