"""Alerts: what is the matter with organisations and the installation.

A row of `audit.alert` is open while its condition holds. Raising and resolving are events of the
log, so forwarders send them; people of the tenant get a mail (`services.audit.notices`).
"""
