-- Up to which of its people, in the order of their ids, a source's last change of mappings has been carried
-- out; nothing when it has been for all.
ALTER TABLE identity.scim_source ADD COLUMN remapped_to uuid;
