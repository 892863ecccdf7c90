"""Forwarders: the audit log's entries on their way to webhooks and to syslog.

Forwarders read the log itself, with a position in each chain: `worker` finds what there is to send
and when, `deliver` goes along a chain, `webhook` and `syslog` send, `formats` says what. Nothing
here stands in the way of an action. docs/adr/0058-forwarders-read-the-log.md has the reasons.
"""
