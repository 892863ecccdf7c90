"""Audit: the log of who did what, when and from where, and the proof that it only grew.

RPCs: AuditService, AuditRetentionService, ForwarderService, ReportService, ReportScheduleService,
AlertService, PersonDataService. Receives all events, `evergreen.v1.>`; sends `audit.exported`, what
becomes of forwarders, which send entries elsewhere (`forward`), and of reports and of what is held
about a person, for which it asks the other services (`reports`, `person_data`). Of telemetry's
`device_events`, which tell what devices report about themselves, it takes none.

Every event of an admin's action and of a device's life becomes one entry (its id is the event's
id) in its tenant's chain, in the order of arrival. `auditlog.chain` is the format,
`auditlog.verify` the check, docs/adr/0015-audit-chain.md the reasons.

No action is without its entry, because:

- an event commits with its action, in the outbox of the service that acted, and waits there until
  the stream has it; the stream keeps it until audit acknowledged it, which is after the commit of
  the entry. What is delivered twice is recorded once.
- When the stream drops messages that audit has not recorded (older than 30 days, or more than it
  may hold), or was lost and made again, or the database was restored and lacks entries that were
  acknowledged, `gaps` sees it within a minute: it has every outbox publish again and reads the
  stream from its beginning. An outbox deletes nothing while the stream lost something that audit
  has not recorded (`servicekit.messaging.outbox`).
- A message that is no event is quarantined with its reason (`audit.dead_letter`, a line in the log,
  the metric `evergreen_audit_dead_letters_total`), so that it does not stop the ones behind it.
- A chain that somebody damaged is not mended: the next entry goes on behind it, and the damage
  stays visible to `evergreen audit verify`.

What remains: an operator who deletes single messages out of the stream before audit has read them.
"""
