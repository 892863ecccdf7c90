"""Reports: what the services know at one time, as files that are kept and signed.

A report is made in the background by one process (`maker`), which asks the owners of the data page
by page (`sources`), writes rows into the files of all formats as they come (`files`, `page`), and
keeps the files in parts. Nothing of it is held in memory as a whole. A process that dies leaves
parts that nobody sees, and another one begins anew. `kinds` has what each kind says.
"""
