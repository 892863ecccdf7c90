"""`evergreen backup`: one encrypted archive of an installation, checked, and put back.

An archive is a compressed tar, encrypted with age (https://age-encryption.org), so that it can be
opened without this program: `age -d -i KEY ARCHIVE | tar xz`. With a passphrase, the file is a tar
of two age files, the key (encrypted with the passphrase) and what the key opens:
`tar xf ARCHIVE && age -d -i key.age backup.age | tar xz`.
"""
