"""What commands do to the cluster that their pod runs in, on an installation of the Helm chart."""
