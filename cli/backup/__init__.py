"""`evergreen backup`: one encrypted archive of an installation, checked, and put back.

An archive is a compressed tar, encrypted with age (https://age-encryption.org) for a passphrase or
for public keys, so that it can be opened without this program: `age -d ARCHIVE | tar xz`.
"""
