CALL evergreen.add_outbox('attestation');
CALL evergreen.add_device_access('attestation');
