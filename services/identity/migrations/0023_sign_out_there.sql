-- Whether signing out here leads to the provider, to sign out there, too (OpenID Connect RP-Initiated
-- Logout 1.0). Its operator has to have registered where people come back to: nobody is sent there unasked.
ALTER TABLE identity.sso_provider ADD COLUMN single_logout boolean NOT NULL DEFAULT false;
