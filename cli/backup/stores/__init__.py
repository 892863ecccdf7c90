"""Where backups are kept: a directory, an SFTP server, or a bucket of an S3-compatible store."""
