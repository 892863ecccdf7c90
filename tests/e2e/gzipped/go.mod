module gzipped

go 1.24.0
