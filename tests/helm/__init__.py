"""The Helm chart, rendered by Helm and checked by schema and by policy."""
