-- How often the bound TPM had been reset at the latest evidence, as far as its key tells; NULL before
-- the first. It starts anew with a new key.
ALTER TABLE attestation.tpm_binding ADD COLUMN reset_count bigint;
-- Register 11 of the latest evidence before user space measured into it; NULL where no log shows that.
ALTER TABLE attestation.device ADD COLUMN image text;
