"""The product in Kubernetes: what it does by the cluster's own API, in a pod that may."""
