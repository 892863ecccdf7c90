"""Chaos: faults in every process under load, and afterwards a count of what was promised.

`make chaos` runs it for ten minutes: processes are killed and stopped, links are cut and slowed
down, the disk fills up, clocks step. All the while devices and an administrator work, and note what
was acknowledged. At the end that is compared with PostgreSQL, the streams and the audit log.
"""
